"""The doctor: faults of data and models that no error would show, found before any training.

Each finding says what is wrong, where (file and line), why it matters, and what to do. Problems stop; notes do not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel

from triptych.audit.agreement import trivial
from triptych.data.files import GoodRows
from triptych.data.folder import HELD_OUT, DataFolder, TrainedOn
from triptych.data.folds import FOLDS
from triptych.data.lengths import tokenized
from triptych.data.rows import Place
from triptych.data.serialised import serialised
from triptych.data.splits import contradictions, form, prompt_of
from triptych.data.template import closing_tokens, scored_tokens
from triptych.engine.models import load_tokenizer
from triptych.engine.scoring import RewardModel, Scorer
from triptych.errors import ModelError
from triptych.preflight.amounts import comparisons_needed, comparisons_to_hold_out
from triptych.recipe import Recipe
from triptych.records import Comparison, Conversation, Message, Prompt, Rating, answers_of, user
from triptych.reward.rules import UnitTests
from triptych.reward.sandbox import confinement
from triptych.statistics.intervals import mean_interval

LENGTH_SHARE = 0.55
"""A share of labels that one rule of length explains, at the near end of its interval, from which it is noted."""
POSITION_SHARE = 0.9
"""From this share on, where an answer stood explains the labels, and what it says does not."""
COARSE = 0.15
"""A smallest lead that an audit can show, from which it is noted."""
SCORED = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: what it is, where, why it matters and what to do; `stops` where it makes a run worthless."""

    what: str
    where: str
    why: str
    remedy: str
    stops: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.why}; {self.remedy}"


def diagnose(
    recipe: Recipe, folder: Path, comparisons: Iterable[GoodRows[Comparison]], tokenizer: Any | None
) -> Iterator[Finding]:
    """All findings about a recipe's comparisons.

    Args:
        recipe: with at least one file of comparisons.
        folder: where they were split as the run will have them.
        comparisons: as they stand in their files.
        tokenizer: the policy's; without it lengths are not looked at.
    """
    located = locate(comparisons)
    yield from look_at_comparisons(located)
    places = {place.row: place for place in reversed(located)}
    audit = recipe.reward.audit
    learners: list[tuple[TrainedOn, str, Any]] = [("train", "reward", recipe.learner)] if recipe.rewarded else []
    if recipe.gate.apart is not None:
        learners.append(("judge", recipe.apart_name, recipe.gate.apart.model))
    data = DataFolder(folder)
    for learnt, section, config in learners:
        training, heldout = (data.comparisons(split).read_any() for split in (learnt, HELD_OUT[learnt]))
        what = "the gate's judge" if learnt == "judge" else "the reward model"
        rows = training if data.crossfitted(learnt) else heldout
        yield from look_at_count(
            rows, what, audit.checks.least_prompts, audit.checks.least_margin, audit.required,
            comparisons_needed(recipe, learnt, len({form(place.row) for place in located})),
        )
        if data.crossfitted(learnt):
            yield cross_fitted(rows, what, comparisons_to_hold_out(recipe, learnt), trained=config is not None)
        if tokenizer is not None and config is not None:
            yield from look_at_lengths([places[row] for row in training], tokenizer, section, config)


def diagnose_sandbox(recipe: Recipe) -> Iterator[Finding]:
    """Whether code that a model writes can be confined here, where the recipe has a rule that runs it."""
    rules = list(_unit_tests(recipe))
    if rules and not (kept := confinement()).whole:
        yield Finding(
            f"unit tests cannot confine the code that a model writes: {kept}", "rule tests",
            "it could read and change your files", "install bubblewrap, or set `unconfined: true` where that may be",
            stops=not all(rule.unconfined for rule in rules),
        )


def _unit_tests(settings: object) -> Iterator[UnitTests]:
    if isinstance(settings, UnitTests):
        yield settings
    elif isinstance(settings, BaseModel):
        for name in type(settings).model_fields:
            yield from _unit_tests(getattr(settings, name))
    elif isinstance(settings, list | tuple):
        for setting in settings:
            yield from _unit_tests(setting)


def diagnose_reward(folder: Path, tokenizer: Any | None, rows: Sequence[Comparison]) -> Iterator[Finding]:
    """All findings about a reward model that is there already.

    Args:
        folder: its Hugging Face folder.
        tokenizer: the policy's, where both must see the same texts; None of a reward that keeps its own template.
        rows: comparisons to try it on.
    """
    own = load_tokenizer(folder)
    faults = list(look_at_tokens(own, read_config(folder), str(folder)))
    yield from faults
    if not any(fault.stops for fault in faults):
        if tokenizer is not None:
            yield from look_at_templates(tokenizer, own, str(folder))
        yield from look_at_scores(RewardModel(folder), rows, str(folder))


@dataclass(frozen=True, slots=True)
class Located:
    """A comparison and where it stands."""

    file: str
    line: int
    row: Comparison

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def locate(read: Iterable[GoodRows[Comparison]]) -> list[Located]:
    """The good comparisons of all files with their lines."""
    return [Located(*place, row) for part in read for place, row in part.placed]


def look_at_comparisons(rows: Sequence[Located]) -> Iterator[Finding]:
    """What is wrong with comparisons as they stand in their files."""
    yield from contradicting(rows)
    for file in dict.fromkeys(located.file for located in rows):
        part = [located for located in rows if located.file == file]
        yield from contradicting_themselves(part)
        yield from one_sided(part)
        yield from explained_by_length(part)


def contradicting(rows: Sequence[Located]) -> Iterator[Finding]:
    """The same two answers, preferred in both ways."""
    places: dict[Comparison, Located] = {}
    for located in rows:
        places.setdefault(located.row, located)
    pairs = contradictions(places)
    if pairs:
        one, other = (places[row] for row in pairs[0])
        yield Finding(
            f"{_count(len(pairs), 'pair')} of comparisons contradicting each other (this one and {one})", str(other),
            "no reward model can order both as labelled, which bounds its accuracy",
            "decide which label is right and take the other one out, or leave both where people really disagree",
        )


def contradicting_themselves(rows: Sequence[Located]) -> Iterator[Finding]:
    """Rows whose own numbers say that the other answer is the better one."""
    def outvoted(row: Comparison) -> bool:
        votes, people = row.votes_for_chosen, row.num_annotators
        return votes is not None and people is not None and 2 * votes < people

    for what, wrong in (
        ("have a margin below 0", [located for located in rows if (located.row.margin or 0) < 0]),
        ("have fewer than half of the votes for the chosen answer", [one for one in rows if outvoted(one.row)]),
    ):
        if wrong:
            yield Finding(
                f"{len(wrong):,} of {len(rows):,} comparisons {what}", str(wrong[0]),
                "their numbers say that the rejected answer is the better one, and their label that the chosen one is",
                "find out which is right: exchange the answers, or take the rows out",
                stops=2 * len(wrong) >= len(rows),
            )


def look_at_texts(read: Mapping[str, Sequence[GoodRows[Any]]], end: str | None = None) -> Iterator[Finding]:
    """Texts that hold a whole conversation, or marks of a chat template, in every good row of all files.

    Args:
        read: the rows of each kind.
        end: the text of the token that ends an answer.
    """
    for kind, parts in read.items():
        for part in parts:
            seen: dict[str, list[Place]] = {}
            for place, row in part.placed:
                texts = (*(turn.content for turn in prompt_of(row).messages), *answers_of(row))
                for what in {what for text in texts if (what := serialised(text, end)) is not None}:
                    seen.setdefault(what, []).append(place)
            for what, where in seen.items():
                yield Finding(
                    f"{len(where):,} of {len(part.placed):,} {kind} have {what}", str(where[0]),
                    "it would be one turn inside the model's own template, with its marks as plain text",
                    "give the turns as they were before, as [{role, content}, ...], without marks and end tokens; "
                    "docs/data.md lists the forms that are read", stops=2 * len(where) >= len(part.placed),
                )


def one_sided(rows: Sequence[Located]) -> Iterator[Finding]:
    """Labels that follow the place in which an answer was shown, where `chosen_first` says it."""
    known = [located for located in rows if located.row.chosen_first is not None]
    first = sum(bool(located.row.chosen_first) for located in known)
    # Three standard deviations of a fair coin: one file in 370 by chance.
    if len(known) < 20 or abs(first - len(known) / 2) <= 1.5 * math.sqrt(len(known)):
        return
    share = first / len(known)
    yield Finding(
        f"the answer shown {'first' if share > 0.5 else 'second'} was preferred in {max(share, 1 - share):.0%} of "
        f"{len(known):,} comparisons", str(known[0]),
        "labels that follow the position are not about the answers",
        "show the answers in random order, or each pair in both orders, and label again",
        stops=max(share, 1 - share) >= POSITION_SHARE,
    )


def explained_by_length(rows: Sequence[Located]) -> Iterator[Finding]:
    """Labels that follow the answers' lengths."""
    longer = trivial([located.row for located in rows])["longer wins"]
    share, (low, high) = mean_interval(longer, [located.row.prompt.key for located in rows])
    if low > LENGTH_SHARE or high < 1 - LENGTH_SHARE:
        rule, part = ("longer", share) if share > 0.5 else ("shorter", 1 - share)
        ends = (low, high) if share > 0.5 else (1 - high, 1 - low)
        yield Finding(
            f"'the {rule} answer wins' is right on {part:.0%} of the comparisons ({ends[0]:.0%} to {ends[1]:.0%})",
            rows[0].file, "a reward model learns the length first, and a policy then learns it from the reward model",
            f"add comparisons in which the {'shorter' if rule == 'longer' else 'longer'} answer is better, and look at "
            "the audit's length section",
        )


def cross_fitted(rows: Sequence[Comparison], what: str, enough: int, trained: bool) -> Finding:
    """That none is held out, which is no fault and costs time.

    Args:
        enough: of about how many prompts some would be.
        trained: whether the reward is trained on comparisons.
    """
    return Finding(
        f"{_count(len(rows), 'comparison')} of {_count(len({form(row) for row in rows}), 'prompt')} are too few to "
        "hold some out", f"cross-fitting {what}",
        f"{FOLDS} models are trained without a fifth of them each and audited on that fifth, and what is used is "
        "trained on all" if trained else "it is audited on all of them, as nothing is trained on them",
        f"with comparisons of about {enough:,} different prompts some are held out, or set splits.cross_fit: false",
    )


def look_at_count(
    heldout: Sequence[Comparison], what: str, least_prompts: int, least_margin: float, required: bool,
    needed: str = "",
) -> Iterator[Finding]:
    """Whether there are enough held-out comparisons for the interval by which a reward model passes its audit.

    The smallest lead that the audit shows four times in five is (1.96 + 0.84) s / √prompts, where s, the
    deviation of the paired difference between two rules right on 70% and 60%, is about 0.67 (Cohen 1988).

    Args:
        needed: how many would be enough.
    """
    prompts = [row.prompt.key for row in heldout]
    count = len(set(prompts))
    where = f"held-out comparisons to audit {what}"
    remedy = "give more comparisons, of more prompts, or raise splits.heldout"
    if count < least_prompts:
        remedy = f"give more comparisons, of more prompts: {needed}" if needed else remedy
        yield Finding(
            f"of {count} prompts, where {least_prompts} are the least", where, "so few prove nothing",
            remedy if required else f"{remedy}; the audit will fail, and the run goes on as reward.audit.required is "
            "false", stops=required or not count,
        )
        return
    for rule, outcomes in trivial(heldout).items():
        lead, (low, _) = mean_interval([1 - outcome for outcome in outcomes], prompts)
        if low <= least_margin:
            yield Finding(
                f"'{rule}' is right on {1 - lead:.0%} of them", where,
                "not even a reward model without a mistake would be proved better than that",
                "add comparisons in which length and quality disagree", stops=required,
            )
    lead = 2.8 * 0.67 / math.sqrt(count)
    if lead > COARSE:
        yield Finding(
            f"of {count} prompts", where,
            f"a reward model passes only if it beats every trivial rule beyond chance, which so few show for a lead of "
            f"about {100 * lead:.0f} points or more", remedy,
        )


def look_at_lengths(rows: Sequence[Located], tokenizer: Any, section: str, config: Any) -> Iterator[Finding]:
    """Comparisons longer than the context of the reward model that learns from them."""
    lengths = [tokenized(located.row, tokenizer, scored=True).length for located in rows]
    over = [located for located, length in zip(rows, lengths, strict=True) if length > config.context]
    if over:
        most = sorted(lengths)[math.ceil(0.95 * len(lengths)) - 1]
        raised = f"raise {section}.context to {max(lengths):,}"
        if config.context < most < max(lengths):
            raised += f", or to {most:,} for 95% of them"
        dropped = config.overlong == "drop"
        yield Finding(
            f"{len(over):,} of {len(rows):,} comparisons are longer than {section}.context, {config.context:,} tokens, "
            f"and {'are left out' if dropped else 'have their answers cut'}", str(over[0]),
            "a reward model that has seen short answers only is not to be trusted on long ones" if dropped else
            "what made an answer better may stand in the part that is cut off", raised,
        )


def look_at_tokens(tokenizer: Any, config: Mapping[str, Any], where: str) -> Iterator[Finding]:
    """Whether padding and end tokens of a reward model's folder are such that it is scored as it was trained.

    Args:
        tokenizer: the folder's.
        config: its config.json.
        where: the folder.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None or pad == eos:
        yield Finding(
            "padding is missing" if pad is None else f"padding is EOS, {tokenizer.eos_token}",
            f"{where}/tokenizer_config.json",
            "a reward is read at the last token that is not padding, where the conversation ends",
            "set pad_token to a token that no answer has", stops=True,
        )
    said = config.get("pad_token_id", (config.get("text_config") or {}).get("pad_token_id"))
    if said != pad:
        yield Finding(
            f"pad_token_id is {said} and the tokenizer pads with {pad}", f"{where}/config.json",
            "in a padded batch the reward is read at the wrong token", f"set pad_token_id to {pad}", stops=True,
        )
    if tokenizer.chat_template is None:
        yield Finding(
            "there is no chat template", f"{where}/tokenizer_config.json", "nobody knows how it saw conversations",
            "put the template of its training beside it, as chat_template.jinja", stops=True,
        )
        return
    if pad not in (None, eos) and pad in closing_tokens(tokenizer):
        yield Finding(
            f"the chat template ends a conversation with padding, {tokenizer.pad_token}",
            f"{where}/tokenizer_config.json", "a reward is read at the last token that is not padding, an earlier one",
            "set pad_token to a token that no conversation has", stops=True,
        )


PROBE = (
    Prompt(user("What is\n2 + 2?")),
    Prompt((Message("system", "Be brief."), *user("Hello."), Message("assistant", "Hi!"), *user(" And now? "))),
)


def look_at_templates(policy: Any, reward: Any, where: str) -> Iterator[Finding]:
    """Whether a reward model sees conversations as the policy writes them: by text, for the tokens may differ."""
    for prompt in PROBE:
        try:
            seen = [_shown(tokenizer, prompt) for tokenizer in (policy, reward)]
        except ModelError:  # a template that refuses a system turn: nothing to compare
            continue
        if seen[0] != seen[1]:
            yield Finding(
                f"the policy's conversations read {seen[0]!r} and the reward model's {seen[1]!r}", where,
                "a reward model scores what it was not trained on",
                "give both the same chat template, that of the reward model's training", stops=True,
            )
            return


def look_at_scores(scorer: Scorer, rows: Sequence[Comparison], where: str) -> Iterator[Finding]:
    """Whether a reward tells answers apart at all."""
    few = rows[:SCORED]
    scores = scorer.score([Conversation(row.prompt, answer) for row in few for answer in (row.chosen, row.rejected)])
    if len(scores) > 1 and max(scores) - min(scores) <= 1e-6 * max(1.0, *map(abs, scores)):
        yield Finding(
            f"all {len(scores)} answers that were tried have the same score, {fmean(scores):.4g}", where,
            "a constant reward improves nothing",
            "look at what it was trained on, and whether it is read at the right token", stops=True,
        )


def look_at_ratings(read: Sequence[GoodRows[Rating]]) -> Iterator[Finding]:
    """Attributes whose rating is the same in every good row of all files."""
    ratings = [rating for part in read for _, rating in part.placed]
    where = ", ".join(part.file for part in read)
    values: dict[str, set[float]] = {}
    for rating in ratings:
        for attribute, value in rating.scores.items():
            values.setdefault(attribute, set()).add(value)
    for attribute, given in values.items():
        if len(ratings) > 1 and len(given) == 1:
            yield Finding(
                f"{attribute} is {next(iter(given)):g} in every row", where,
                "there is nothing to learn from it",
                "take the attribute out, or rate answers that differ in it", stops=len(values) == 1,
            )


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


def _shown(tokenizer: Any, prompt: Prompt) -> str:
    """The conversation up to what the template closes it with."""
    opening, (answer,) = scored_tokens(tokenizer, prompt, ["Fine."])
    tokens = [*opening, *answer]
    end = len(tokens) - len(closing_tokens(tokenizer))
    text: str = tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
    return text


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
