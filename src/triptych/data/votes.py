"""What people said, a line each, and which of it counts: the one place that every reader of such lines asks.

A line with a name (`annotator`) is that person's word on its question until a later line of the same person on the same
question, which may also take it back. Lines without a name count each by themselves, as long as they stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from triptych.records import Comparison, Conversation, Question, Thumb, Verdict, Withdrawal

Opinion = Comparison | Thumb | Verdict
"""What somebody said to a question."""
Vote = Opinion | Withdrawal
"""A line of a file that people add to."""

BOTH_BAD = "both bad"
NO_MAJORITY = "no majority"

_FLIPPED = {"first": "second", "second": "first"}


def standing(votes: Iterable[Vote]) -> list[Opinion]:
    """The votes that count, in their order: each named person's last on a question, none where it was taken back."""
    votes = list(votes)
    if len(votes) == 1 and not isinstance(votes[0], Withdrawal):  # as nearly all questions have it
        return [votes[0]]
    return [vote for _, vote in _standing(votes)]


def _standing(votes: Sequence[Vote]) -> list[tuple[int, Opinion]]:
    """The same, each with its place."""
    last = {_voter(vote): place for place, vote in enumerate(votes) if vote.annotator is not None}
    return [
        (place, vote) for place, vote in enumerate(votes)
        if not isinstance(vote, Withdrawal) and (vote.annotator is None or last[_voter(vote)] == place)
    ]


def in_time(votes: Sequence[Vote], earlier: Iterable[Vote] = ()) -> tuple[list[tuple[int, Vote]], int]:
    """What a round may learn of the lines that it took, each with its place, and how many answers came too late.

    A question that named people answered is settled by the round that learns their answers, so that it counts once:
    what named people say to it later is left out, and so is all of who begins by taking an answer back.

    Args:
        earlier: the lines that earlier rounds took.
    """
    settled_before = {vote.question.key for vote in standing(earlier) if vote.annotator is not None}
    late: dict[tuple[str | None, str], bool] = {}
    for vote in votes:
        if vote.annotator is not None:
            late.setdefault(_voter(vote), isinstance(vote, Withdrawal) or vote.question.key in settled_before)
    kept = [(place, vote) for place, vote in enumerate(votes) if vote.annotator is None or not late[_voter(vote)]]
    return kept, sum(late.values())


def choices(asked: Question | Conversation, opinions: Sequence[Opinion]) -> list[str]:
    """What each of those who answered a question says of it, with its answers in this order."""
    return [_choice(opinion, asked) for opinion in opinions]


def ballots(votes: Iterable[Vote]) -> dict[str, list[str]]:
    """For each question by its key what each of those says who answered it, in the order that the first was shown.

    That is the order in which the question was asked. So who always says the same, whatever is shown, agrees with
    others of that habit no more than by chance.
    """
    said: dict[str, list[Opinion]] = {}
    for opinion in standing(votes):
        said.setdefault(opinion.question.key, []).append(opinion)
    return {key: choices(opinions[0].question, opinions) for key, opinions in said.items()}


def majority(said: Sequence[str]) -> str | None:
    """What more than half of those say who answered a question; None where no choice has so many."""
    choice, count = Counter(said).most_common(1)[0]
    return choice if 2 * count > len(said) else None


@dataclass(frozen=True, slots=True)
class Settled:
    """What is learnt from votes.

    Attributes:
        rows: each with the place of a vote that says so. A question that named people answered is one row; what has no
            name is a row by itself.
        without: the questions that give no row, by why: "both bad", "tie", "no majority".
    """

    rows: Sequence[tuple[int, Comparison | Thumb]]
    without: Mapping[str, int]

    @property
    def note(self) -> str:
        """Why questions give no row, in words; nothing where all do."""
        if not self.without:
            return ""
        reasons = ", ".join(f"{why} ({count:,})" for why, count in sorted(self.without.items()))
        count = sum(self.without.values())
        return f"{count:,} question{'' if count == 1 else 's'} that people answered give no pair: {reasons}"


def settled(votes: Sequence[Vote]) -> Settled:
    """What is learnt from votes: of a question that several named people answered what more than half of them say.

    Of a comparison that several made, it says how many they are and how many prefer the chosen answer. Nothing that is
    learnt has a name.
    """
    rows: list[tuple[int, Comparison | Thumb]] = []
    without: Counter[str] = Counter()
    asked: dict[str, list[tuple[int, Opinion]]] = {}
    for place, vote in _standing(votes):
        if vote.annotator is not None:
            asked.setdefault(vote.question.key, []).append((place, vote))
        elif (row := _learnt(vote)) is not None:
            rows.append((place, row))
        else:
            without[vote.choice] += 1
    for placed in asked.values():
        said = choices(placed[0][1].question, [vote for _, vote in placed])
        most = majority(said)
        place, vote = placed[said.index(most) if most else 0]
        row = _learnt(vote) if most else None
        if row is None:
            without[most or NO_MAJORITY] += 1
            continue
        row = replace(row, annotator=None)
        if len(said) > 1 and isinstance(row, Comparison):
            row = replace(row, votes_for_chosen=said.count(str(most)), num_annotators=len(said))
        rows.append((place, row))
    return Settled(sorted(rows, key=lambda placed: placed[0]), without)


def _learnt(opinion: Opinion) -> Comparison | Thumb | None:
    """What an opinion teaches; None where it prefers no answer."""
    if not isinstance(opinion, Verdict):
        return opinion
    if opinion.better not in _FLIPPED:
        return None
    return opinion.question.compared(opinion.better == "first", opinion.annotator)


def _voter(vote: Vote) -> tuple[str | None, str]:
    return vote.annotator, vote.question.key


def _choice(opinion: Opinion, asked: Question | Conversation) -> str:
    flipped = isinstance(asked, Question) and opinion.question.answers[0] != asked.first
    return _FLIPPED.get(opinion.choice, opinion.choice) if flipped else opinion.choice
