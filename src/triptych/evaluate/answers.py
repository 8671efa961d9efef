"""Candidate and champion answer the gate's prompts, which nothing was trained on.

All that a model is needed for is done and measured here; the gate then judges the texts, and can do so again, or have
people do it, without a model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import read_prompts, write
from triptych.data.folder import DataFolder
from triptych.data.splits import fraction
from triptych.display import one_line
from triptych.engine.perplexity import bits_per_byte
from triptych.engine.rollout import Policy, divergence
from triptych.engine.sampling import Sampling
from triptych.errors import DataError, Fault
from triptych.instructions.text import count_words
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, reads
from triptych.records import Conversation, Document, Prompt, Question, Rollout, differ, to_json
from triptych.storage import Folder, read_rows

FILE = "answers.jsonl"
GIVEN = "as given"
"""How answers were decoded that came as a file."""
QUESTIONS = "questions.jsonl"

PIECE = 1000
"""Characters of a document on which plain text is measured."""


class Answering(Config):
    """What the two are asked and measured on.

    Attributes:
        prompts: how many of the gate's prompts each round takes.
        documents: how many held-out documents bits per byte are measured on, the beginning of each.
    """

    prompts: int = Field(default=300, ge=2)
    documents: int = Field(default=64, ge=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """What champion and candidate answered to one prompt.

    Attributes:
        before, after: the champion's answer and the candidate's.
        tokens_before, tokens_after: how many each has.
        ended_before, ended_after: False of an answer that was cut at `max_tokens`.
    """

    prompt: Prompt
    before: str
    after: str
    tokens_before: int
    tokens_after: int
    ended_before: bool = True
    ended_after: bool = True

    @property
    def conversations(self) -> tuple[Conversation, Conversation]:
        """The champion's and the candidate's."""
        return Conversation(self.prompt, self.before), Conversation(self.prompt, self.after)

    def question(self, seed: int) -> Question:
        """The two in an order that says nothing about who wrote which."""
        turned = fraction("shown first at the gate", self.prompt.key, seed) < 0.5
        return Question(self.prompt, *((self.after, self.before) if turned else (self.before, self.after)))


class Answered(Result):
    """The two models' answers beside each other; `before` is the champion, `after` the candidate.

    Attributes:
        prompts_again: the round whose prompts decide once more; None where these decided nothing before.
        kl: candidate from champion, nats per answer; None where only their answers are there.
        length_before, length_after: mean tokens per answer; words, where only the answers are there.
        cut_before, cut_after: share of the answers that were cut at `max_tokens`; None where only answers are there.
        bits_before, bits_after: bits per byte of held-out plain text; None where there is none.
    """

    prompts: int
    prompts_again: int | None = None
    kl: float | None
    decoding_before: str
    decoding_after: str
    length_before: float
    length_after: float
    cut_before: float | None = None
    cut_after: float | None = None
    bits_before: float | None = None
    bits_after: float | None = None


@reads(data=("prompts_gate", "text_heldout"))
def answer(
    context: StageContext, config: Answering, candidate: Folder, champion: Folder, data: Folder,
    candidate_decoding: Sampling, champion_decoding: Sampling, round: int = 1,
) -> Answered:
    """Writes `answers.jsonl` and, of those that differ, `questions.jsonl`; measures distance, length, plain text.

    Args:
        candidate_decoding, champion_decoding: each model's own; their seeds do not count.
    """
    policies = [Policy.open(folder / "model") for folder in (champion, candidate)]
    decodings = [champion_decoding, candidate_decoding]
    prompts = DataFolder(data).prompts("gate").read()
    for policy, decoding in zip(policies, decodings, strict=True):
        prompts = policy.fitting(prompts, decoding.max_tokens, context.progress)
    prompts, again = of_round(prompts, config.prompts, round)
    # Independent noise for the two: equal models must not tie on every prompt by writing the same.
    seed = (context.seed * 1000 + round) * 10
    before = policies[0].write(prompts, replace(champion_decoding, seed=seed), progress=context.progress)
    policies[0].release()  # it writes no more
    after = policies[1].write(prompts, replace(candidate_decoding, seed=seed + 1), progress=context.progress)
    # KL is the distance of the two policies, whatever they are decoded at: its estimate needs answers of the
    # candidate's own distribution, and those that were drawn at another temperature are of another one.
    plain = Sampling(candidate_decoding.max_tokens, seed=seed + 1)
    own = after if candidate_decoding.name == plain.name else policies[1].write(
        prompts, plain, progress=context.progress
    )
    policies[1].release()
    pairs = [_pair(*one, *other) for one, other in zip(before, after, strict=True)]
    _keep(context, pairs)
    documents = _documents(DataFolder(data), config.documents)
    bits_before, bits_after = (
        bits_per_byte(policy.model, policy.tokenizer, documents, _context(policy)) if documents else None
        for policy in policies
    )
    return Answered(
        prompts=len(pairs),
        prompts_again=again,
        kl=divergence(policies[1], policies[0], own),
        decoding_before=champion_decoding.name,
        decoding_after=candidate_decoding.name,
        length_before=sum(pair.tokens_before for pair in pairs) / len(pairs),
        length_after=sum(pair.tokens_after for pair in pairs) / len(pairs),
        cut_before=sum(not pair.ended_before for pair in pairs) / len(pairs),
        cut_after=sum(not pair.ended_after for pair in pairs) / len(pairs),
        bits_before=bits_before,
        bits_after=bits_after,
    )


def take(
    context: StageContext, champion: Sequence[Conversation], candidate: Sequence[Conversation],
    files: tuple[str, str],
) -> Answered:
    """The same of answers that are there already, however they were made: each prompt's, one of either model.

    Args:
        files: where the champion's and the candidate's stand.

    Raises:
        DataError: a prompt stands twice, or only one of the two answered it.
    """
    before, after = (_by_prompt(rows, file) for rows, file in zip((champion, candidate), files, strict=True))
    lacking = [
        Fault(file, None, None, f"has no answer to {one_line(row.prompt.messages[-1].content)[:60]!r}, as {there} has")
        for one, other, file, there in ((before, after, files[1], files[0]), (after, before, *files))
        for key, row in one.items() if key not in other
    ]
    if lacking:
        raise DataError(lacking)
    pairs = [
        Pair(row.prompt, old, new, count_words(old), count_words(new)) for key, row in before.items()
        for old, new in [(row.messages[-1].shown, after[key].messages[-1].shown)]
    ]
    _keep(context, pairs)
    return Answered(
        prompts=len(pairs),
        kl=None,
        decoding_before=GIVEN,
        decoding_after=GIVEN,
        length_before=sum(pair.tokens_before for pair in pairs) / len(pairs),
        length_after=sum(pair.tokens_after for pair in pairs) / len(pairs),
    )


def of_round(prompts: Sequence[Prompt], size: int, round: int) -> tuple[list[Prompt], int | None]:
    """The prompts that decide a round, and which round they decided before, where there are no others.

    They are dealt in their order, `size` to each round; the rest is a round's too where it is at least half of that.
    Then the first ones come again.
    """
    portions = portions_of(len(prompts), size)
    place = (round - 1) % portions
    taken = list(prompts[place * size : (place + 1) * size])
    return taken, place + 1 if round > portions else None


def portions_of(prompts: int, size: int) -> int:
    """For how many rounds so many prompts are enough."""
    whole, rest = divmod(prompts, size)
    return max(1, whole + (2 * rest >= size))


def answered(folder: Folder) -> list[Pair]:
    """The pairs in the folder of the stage above."""
    prompts, rows = read_prompts(folder / FILE), read_rows(folder / FILE)
    return [
        Pair(
            prompt, row["before"], row["after"], row["tokens_before"], row["tokens_after"],
            row.get("ended_before", True), row.get("ended_after", True),
        )
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def _keep(context: StageContext, pairs: Sequence[Pair]) -> None:
    """Writes `answers.jsonl`, and the questions to people of those that differ."""
    with open(context.output / FILE, "w", encoding="utf-8") as file:
        for pair in pairs:
            row = to_json(pair.prompt) | {
                "before": pair.before, "after": pair.after,
                "tokens_before": pair.tokens_before, "tokens_after": pair.tokens_after,
                "ended_before": pair.ended_before, "ended_after": pair.ended_after,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write(
        context.output / QUESTIONS, [pair.question(context.seed) for pair in pairs if differ(pair.before, pair.after)]
    )


def _by_prompt(rows: Sequence[Conversation], file: str) -> dict[str, Conversation]:
    by_key: dict[str, Conversation] = {}
    for row in rows:
        if row.prompt.key in by_key:
            asked = one_line(row.prompt.messages[-1].content)[:60]
            raise DataError([Fault(file, None, None, f"has two answers to {asked!r}; keep one")])
        by_key[row.prompt.key] = row
    return by_key


def _pair(before: Rollout, after: Rollout) -> Pair:
    return Pair(
        before.prompt, before.answer, after.answer, len(before.tokens), len(after.tokens), before.finished,
        after.finished,
    )


def _documents(data: DataFolder, count: int) -> list[Document]:
    """The beginnings of so many documents; none where there is no plain text."""
    file = data.text("heldout")
    rows = file.read()[:count] if file.exists else []
    return [Document(row.text[:PIECE]) for row in rows if row.text[:PIECE].strip()]


def _context(policy: Policy) -> int:
    return min(PIECE, policy.context or PIECE)
