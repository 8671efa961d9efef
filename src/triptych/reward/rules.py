"""Rewards that can be verified, and penalties: rules that need no model.

Each rule gives an answer a value from 0 (not as wanted) to 1 (as wanted). The reward is Σ w · value over the rules
that apply to the prompt's task; DeepSeek-R1 (Guo et al. 2025, section 2.2.2) was trained on such rewards alone.

Answers are written by a model that learns what pays. So a rule has a limit of time and size for each of them, and an
answer on which it fails is given what rewards it least.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from triptych.configuration import Config
from triptych.data.numerals import DIGITS, EXPONENT, number_in, number_of
from triptych.deadline import within
from triptych.display import one_line
from triptych.engine.scoring import Scores, ShardMap, unsharded
from triptych.errors import DataError, Fault, RewardError, TriptychError
from triptych.instructions.following import followed
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, UserFiles
from triptych.records import Conversation, Prompt
from triptych.reward import expression, schema
from triptych.reward.kind import Opening, RewardConfig
from triptych.reward.language import LANGUAGES, share_in
from triptych.reward.making import Making
from triptych.reward.sandbox import confinement, run_tests
from triptych.storage import copy_regular

FUNCTIONS = "functions"
"""The folder of an artifact that keeps the users' own functions."""

SECONDS = 5.0
"""How long a rule may look at one answer."""

CHARACTERS = 1_000_000
"""How long an answer may be that rules look at: some 250,000 tokens."""

PATIENCE = 16
"""A user's own function that works on none of so many first answers is broken; one that fails later met bad answers."""

MISSING = "missing; a rule compares answers with it. Give it, or name the rule's `tasks`"

REFUSALS = (
    "i'm sorry", "i am sorry", "sorry, but", "i apologize", "i apologise", "i can't", "i cannot", "i can not",
    "i'm unable", "i am unable", "i'm not able", "i am not able", "i won't", "i will not", "as an ai",
    "as a language model",
)
"""How English answers begin that refuse; only the first sentence is looked at."""

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
_WORD = re.compile(r"\w+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class Rule(Config):
    """What every rule has.

    Attributes:
        weight: what being as wanted is worth; below 0 it is a penalty on it.
        tasks: the tasks whose prompts it applies to; all by default.
        name: in logs; the rule's own name by default.
    """

    weight: float = 1.0
    tasks: tuple[str, ...] = ()
    name: str | None = None

    def applies(self, prompt: Prompt) -> bool:
        """Whether it says anything of answers to the prompt: not where it lacks what they are compared with."""
        return self.is_for(prompt) and self.fault(prompt) != MISSING

    def is_for(self, prompt: Prompt) -> bool:
        """Whether the prompt is of its tasks."""
        return not self.tasks or prompt.task in self.tasks

    def fault(self, prompt: Prompt) -> str | None:
        """Why the prompt's reference cannot be used, or None where it can or need not be."""
        return None

    def require_reference(self, conversation: Conversation) -> str:
        """The prompt's reference, which can be used.

        Raises:
            DataError: it cannot.
        """
        fault = self.fault(conversation.prompt)
        if fault is not None:
            prompt = one_line(conversation.prompt.messages[-1].content)
            raise DataError([Fault(f"prompt {prompt[:60]!r}", None, "reference", fault)])
        return conversation.prompt.reference or ""


class Comparing(Rule):
    """A rule that compares answers with the prompt's reference, whatever it is."""

    def fault(self, prompt: Prompt) -> str | None:
        """See `Rule`."""
        return MISSING if prompt.reference is None else None


class Extracting(Rule):
    """A rule about a part of the answer.

    Attributes:
        extract: a regular expression; the first group of its last match is what counts. All of it by default.
    """

    extract: str | None = None

    @field_validator("extract")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None and expression.expression(pattern).groups < 1:
            raise ValueError("needs a group, as in `answer: (.*)`")
        return pattern

    def _extracted(self, answer: str) -> str | None:
        """The part that counts, or None where there is none."""
        return answer if self.extract is None else expression.last_group(self.extract, answer)


class ExactMatch(Comparing, Extracting):
    """1 where the answer is the prompt's reference, but for spaces and (by default) capitals.

    Attributes:
        case: capitals count.
    """

    rule: Literal["exact"] = "exact"
    case: bool = False

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        answer = self._extracted(conversation.conclusion)
        return float(self._plain(answer) == self._plain(self.require_reference(conversation)))

    def _plain(self, text: str | None) -> str | None:
        joined = None if text is None else " ".join(text.split())
        return joined if self.case or joined is None else joined.casefold()


class NumericMatch(Extracting):
    """1 where the last number of the answer, or of its last `\\boxed{}`, is the prompt's reference.

    Numbers are read as people and LaTeX write them and compared exactly; see :mod:`triptych.data.numerals`.

    Attributes:
        tolerance: how far they may differ, relative to the reference's.
    """

    rule: Literal["numeric"] = "numeric"
    tolerance: float = Field(default=1e-6, ge=0, allow_inf_nan=False)

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        wanted = number_of(self.require_reference(conversation))
        assert wanted is not None
        text = self._extracted(conversation.conclusion)
        given = None if text is None else number_in(text)
        near = Fraction(repr(self.tolerance)) * max(abs(wanted), Fraction(1, 10**12))
        return float(given is not None and abs(given - wanted) <= near)

    def fault(self, prompt: Prompt) -> str | None:
        """See `Rule`."""
        if prompt.reference is None:
            return MISSING
        if number_of(prompt.reference) is not None:
            return None
        if number_in(prompt.reference) is not None:
            return (
                "is not wholly one number, so that rule numeric cannot tell which is meant: give it alone, with a unit "
                f"at most, got {one_line(prompt.reference)[:60]!r}"
            )
        return (
            f"holds no number that rule numeric can use: of at most {DIGITS} characters, with an exponent of at most "
            f"{EXPONENT}, not divided by 0"
        )


class Pattern(Rule):
    """1 where a regular expression is found in the answer (with `whole`: is all of it)."""

    rule: Literal["pattern"] = "pattern"
    pattern: str
    whole: bool = False

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        return float(expression.matches(self.pattern, conversation.answer, whole=self.whole))

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        expression.expression(pattern)
        return pattern


class JsonSchema(Rule):
    """1 where the answer (or its one fenced block) is JSON that a schema allows; draft 2020-12, nothing is fetched.

    Attributes:
        json_schema: the schema; by default the prompt's reference holds it.
    """

    rule: Literal["json"] = "json"
    json_schema: dict[str, Any] | None = None

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        allowed = self._validator(self.require_reference(conversation))
        try:
            content = json.loads(_block(conversation.conclusion), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 0.0
        return float(allowed.is_valid(content))

    def fault(self, prompt: Prompt) -> str | None:
        """See `Rule`."""
        if self.json_schema is None and prompt.reference is None:
            return MISSING
        try:
            self._validator(prompt.reference or "")
        except ValueError as error:
            return f"rule json needs a reference that is a JSON schema: {error}"
        return None

    def _validator(self, reference: str) -> Any:
        return schema.validator(reference if self.json_schema is None else json.dumps(self.json_schema))

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, content: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            if content is not None:
                schema.validator(json.dumps(content))
        except ValueError as error:
            raise ValueError(f"is no JSON schema: {error}") from None
        return content


class UnitTests(Comparing):
    """1 where the answer's Python code passes the tests in the prompt's reference, in a sandbox.

    The code is the answer's last fenced block, or all of it. It runs in one process and the tests in another. See
    :mod:`triptych.reward.sandbox` for what the sandbox protects from.

    Attributes:
        seconds: of wall clock for code and tests.
        mebibytes: of memory for the code in sum, and as much for the tests.
        unconfined: run also where this machine cannot confine the code (no bubblewrap).
    """

    rule: Literal["tests"] = "tests"
    seconds: float = Field(default=5.0, gt=0)
    mebibytes: int = Field(default=512, ge=64)
    unconfined: bool = False

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        verdict = run_tests(
            _block(conversation.conclusion), self.require_reference(conversation), seconds=self.seconds,
            mebibytes=self.mebibytes, unconfined=self.unconfined,
        )
        return float(verdict.passed)


class Length(Rule):
    """1 where the answer has at least and at most so many words (or characters)."""

    rule: Literal["length"] = "length"
    least: int = Field(default=0, ge=0)
    most: int | None = Field(default=None, ge=0)
    unit: Literal["words", "characters"] = "words"

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        answer = conversation.conclusion
        count = len(answer.split()) if self.unit == "words" else len(answer)
        return float(self.least <= count and (self.most is None or count <= self.most))

    @model_validator(mode="after")
    def _window(self) -> Length:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most ({self.most}) must be at least least ({self.least})")
        return self


class Language(Rule):
    """How far the answer looks to be in a language, given by its two letters."""

    rule: Literal["language"] = "language"
    language: str

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        return share_in(self.language, conversation.conclusion)

    @field_validator("language")
    @classmethod
    def _known(cls, language: str) -> str:
        if language not in LANGUAGES:
            raise ValueError(f"must be one of {', '.join(LANGUAGES)}, got {language!r}")
        return language


class Repetition(Rule):
    """The share of the answer's runs of n words that are not repetitions; 1 where it has fewer words."""

    rule: Literal["repetition"] = "repetition"
    words: int = Field(default=3, ge=1)

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        words = [word.lower() for word in _WORD.findall(conversation.answer)]
        runs = [tuple(words[i : i + self.words]) for i in range(len(words) - self.words + 1)]
        return len(set(runs)) / len(runs) if runs else 1.0


class Forbidden(Rule):
    """1 where none of these texts stands in the answer, capitals aside."""

    rule: Literal["forbidden"] = "forbidden"
    texts: tuple[str, ...] = Field(min_length=1)

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        answer = conversation.conclusion.casefold()
        return float(not any(text.casefold() in answer for text in self.texts))


class Refusal(Rule):
    """1 where the answer's first sentence does not refuse.

    Attributes:
        phrases: by which a refusal is known; the usual English ones by default.
    """

    rule: Literal["refusal"] = "refusal"
    phrases: tuple[str, ...] = ()

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        answer = conversation.conclusion.strip().replace("’", "'")
        first = re.split(r"(?<=[.!?])\s|\n", answer, maxsplit=1)[0].casefold()
        return float(not any(phrase.casefold() in first for phrase in self.phrases or REFUSALS))


class Instructions(Rule):
    """The share of the prompt's instructions that the answer follows (Zhou et al. 2023, IFEval).

    The prompt's `checks` hold them; see :mod:`triptych.instructions`. An empty answer follows none. It says nothing of
    answers to a prompt without any, as those of most comparisons are.

    Attributes:
        strict: 1 where it follows all of them, else 0: IFEval's strict accuracy of a prompt.
    """

    rule: Literal["instructions"] = "instructions"
    strict: bool = False

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        outcomes = followed(conversation.prompt, conversation.answer)
        return float(all(outcomes)) if self.strict else sum(outcomes) / len(outcomes)

    def applies(self, prompt: Prompt) -> bool:
        """See `Rule`."""
        return bool(prompt.checks) and super().applies(prompt)

    def fault(self, prompt: Prompt) -> str | None:
        """See `Rule`."""
        if not prompt.checks:
            return "has no `checks`; rule instructions compares answers with them. Give them, or the rule's `tasks`"
        return None


class Chrf(Comparing):
    """chrF of the answer against the prompt's reference, from 0 to 1: how good a translation is (Popović 2015).

    Computed by sacrebleu from characters' n-grams up to 6.

    Attributes:
        word_order: n-grams of words up to this count too; 2 is chrF++.
    """

    rule: Literal["chrf"] = "chrf"
    word_order: int = Field(default=0, ge=0, le=4)

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        wanted = self.require_reference(conversation)
        return float(_chrf(self.word_order).sentence_score(conversation.conclusion, [wanted]).score) / 100


class F1(Comparing, Extracting):
    """F1 of the answer's words against the reference's, without articles and punctuation (Rajpurkar et al. 2016)."""

    rule: Literal["f1"] = "f1"

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        wanted = _plain_words(self.require_reference(conversation))
        given = _plain_words(self._extracted(conversation.conclusion) or "")
        common = sum((Counter(wanted) & Counter(given)).values())
        if not wanted or not given:
            return float(wanted == given)
        return 2 * common / (len(wanted) + len(given))


class OwnFunction(Rule):
    """A function of the user's own: `score(conversation) -> float`, any finite number.

    Attributes:
        function: `file.py:name`, the file in the recipe's folder. One file: it may import what is installed, and
            nothing that lies beside it. Its content is part of the reward's identity.
        limit: seconds that it may take for one answer.
    """

    rule: Literal["function"] = "function"
    function: str = Field(pattern=r"^[^:]+\.py:[A-Za-z_]\w*$")
    limit: float = Field(default=60.0, gt=0)

    @property
    def file(self) -> str:
        """The file, as the recipe names it."""
        return self.function.rpartition(":")[0]


AnyRule = Annotated[
    ExactMatch | NumericMatch | Pattern | JsonSchema | UnitTests | Length | Language | Repetition | Forbidden
    | Refusal | Instructions | Chrf | F1 | OwnFunction,
    Field(discriminator="rule"),
]


class RulesReward(RewardConfig):
    """A reward of rules alone; nothing is trained.

    Attributes:
        rules: each with its weight.
    """

    kind: Literal["rules"] = "rules"
    rules: tuple[AnyRule, ...] = Field(min_length=1)

    @property
    def named(self) -> tuple[str, ...]:
        """The files of the users' own functions."""
        return tuple(rule.file for rule in self.rules if isinstance(rule, OwnFunction))

    @property
    def holds_anywhere(self) -> bool:
        """What rules look at is there or is not."""
        return True

    def make(self, making: Making) -> Artifact[Result]:
        """A stage that keeps them."""
        return making.runner.run(making.name, keep_rules, self, UserFiles(self.files))

    def open(self, opening: Opening) -> Rules:
        """The rules, with the users' own functions in the folder."""
        return Rules(self, opening.folder, identity=opening.identity, shard_map=opening.shard_map)


class Rules:
    """Rules as a scorer.

    Args:
        config: the rules.
        folder: where `functions/` lies with the users' own functions; they are code, which is run.
        shard_map: how answers are shared out.

    Attributes:
        subtracted: whether the score is multiplied with a weight below 0, so that failing must not lower it.
    """

    name = "rules"
    learns = False

    def __init__(
        self, config: RulesReward, folder: Path | None = None, *, identity: str = "", shard_map: ShardMap = unsharded
    ) -> None:
        self.config = config
        self.folder = folder
        self.identity = identity
        self.subtracted = False
        self._shard_map = shard_map
        self._failed: Counter[str] = Counter()
        self._working: set[str] = set()

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The weighted sum of the rules that apply to each prompt's task."""
        return self.details(conversations).totals

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        """The rewards and each rule's value; None where a rule does not apply.

        Raises:
            DataError: a reference cannot be used, or is missing where nothing else applies.
            RewardError: a user's own function works on no answer.
        """
        totals = [0.0] * len(conversations)
        parts: dict[str, list[float | None]] = {}
        counts, notes = {}, {}
        applied = [
            [place for place, conversation in enumerate(conversations) if rule.applies(conversation.prompt)]
            for rule in self.config.rules
        ]
        for (_, rule, _), these in zip(self._rules, applied, strict=True):
            for i in these:
                rule.require_reference(conversations[i])
        reached = set().union(*applied)
        for row in (row for place, row in enumerate(conversations) if place not in reached):
            for rule in self.config.rules:
                if rule.is_for(row.prompt) and rule.fault(row.prompt) == MISSING:  # a score of nothing would be none
                    rule.require_reference(row)
        for (name, rule, value), these in zip(self._rules, applied, strict=True):
            part: list[float | None] = [None] * len(conversations)
            # Each once: code that is stopped at a limit need not come out the same on another rank.
            outcomes = self._shard_map(partial(_each, rule, value), [conversations[i] for i in these])
            failed = {i: why for i, why in zip(these, outcomes, strict=True) if isinstance(why, str)}
            values = [given for given in outcomes if not isinstance(given, str)]
            least = self._least(rule, values)
            if failed:
                place, why = next(iter(failed.items()))
                prompt = one_line(conversations[place].prompt.messages[-1].content)[:60]
                notes[name] = f"fails on an answer to {prompt!r}, which gets {least:g}: {why}"
                counts[f"{name}.failed"] = len(failed)
            if isinstance(rule, OwnFunction):
                self._require_working(name, len(failed), bool(values), f"{rule.function} {notes.get(name)}")
            for i, given in zip(these, outcomes, strict=True):
                part[i] = worth = least if isinstance(given, str) else given
                totals[i] += rule.weight * worth
            parts[name] = part
        return Scores(totals, parts, counts, notes)

    def applies(self, prompt: Prompt) -> bool:
        """See `Limited`: whether a rule does."""
        return any(rule.applies(prompt) for rule in self.config.rules)

    def fault(self, prompt: Prompt) -> str | None:
        """See `Limited`: the first rule's that has one, of those for the prompt's task."""
        these = (rule for rule in self.config.rules if rule.is_for(prompt))
        return next((fault for rule in these if (fault := rule.fault(prompt)) is not None), None)

    def _least(self, rule: Rule, values: Sequence[float]) -> float:
        """The value that rewards least, for an answer on which the rule fails.

        A user's own function has no bounds: there it is the least of those that it gave to the other answers, or 0.
        """
        own = values if isinstance(rule, OwnFunction) else ()
        if (rule.weight < 0) != self.subtracted:
            return max([0.0, *own] if isinstance(rule, OwnFunction) else [1.0])
        return min([0.0, *own])

    def _require_working(self, name: str, failed: int, works: bool, message: str) -> None:
        """Ends where a function has only ever failed: then it is the function, and not the answers."""
        self._failed[name] += failed
        self._working |= {name} if works else set()
        if name not in self._working and self._failed[name] >= PATIENCE:
            raise RewardError(f"{message} (as on every one of {self._failed[name]} answers so far)")

    @cached_property
    def _rules(self) -> list[tuple[str, Rule, Callable[[Conversation], float]]]:
        """Every rule with a name that no other has, and what computes it."""
        rules: list[tuple[str, Rule, Callable[[Conversation], float]]] = []
        for place, rule in enumerate(self.config.rules):
            name = rule.name or rule.rule
            if name in (other for other, _, _ in rules):
                name = f"{name} {place + 1}"
            rules.append((name, rule, self._own(place, rule) if isinstance(rule, OwnFunction) else rule.value))
        return rules

    def _own(self, place: int, rule: OwnFunction) -> Callable[[Conversation], float]:
        assert self.folder is not None, "own functions need the folder that keeps them"
        path = self.folder / FUNCTIONS / f"{place}.py"
        function = loaded(path, rule.function)

        def value(conversation: Conversation) -> float:
            given = float(function(conversation))
            if not math.isfinite(given):
                raise ValueError(f"must give a finite number, got {given}")
            return given

        return value


class RulesKept(Result):
    """How many rules there are."""

    rules: int


def keep_rules(
    context: StageContext, config: RulesReward, sources: Mapping[str, str | Path] | None = None
) -> RulesKept:
    """Leaves `reward.json` and the users' own functions; nothing is trained."""
    for place, rule in enumerate(config.rules):
        if isinstance(rule, OwnFunction):
            kept = context.output / FUNCTIONS / f"{place}.py"
            kept.parent.mkdir(exist_ok=True)
            try:
                copy_regular(Path((sources or {})[rule.file]), kept)
            except OSError as error:
                raise RewardError(f"{rule.function}: the file cannot be read: {error.strerror}") from error
            loaded(kept, rule.function)
    content = config.model_dump(mode="json")
    for described in content["rules"]:
        if "function" in described:  # no path of this machine
            described["function"] = described["function"].replace("\\", "/").rpartition("/")[2]
    path = context.output / "reward.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if any(isinstance(rule, UnitTests) for rule in config.rules):
        context.progress.say(f"unit tests: {confinement()}")
    return RulesKept(rules=len(config.rules))


def loaded(path: Path, function: str) -> Callable[[Conversation], Any]:
    """The function `file.py:name` from the file at `path`, which is run.

    Raises:
        RewardError: the file cannot be run, or has no such function.
    """
    name = function.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location("triptych_own_function", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # an artifact holds what its manifest lists
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise RewardError(f"{function}: cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = before
    own = getattr(module, name, None)
    if not callable(own):
        raise RewardError(f"{function}: the file has no function called {name}")
    checked: Callable[[Conversation], Any] = own
    return checked


@cache
def _chrf(word_order: int) -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=word_order)


def _plain_words(text: str) -> list[str]:
    """Words as SQuAD's measure compares them: small letters, no punctuation, no articles."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLE.sub(" ", plain).split()


def _each(
    rule: Rule, value: Callable[[Conversation], float], conversations: Sequence[Conversation]
) -> list[float | str]:
    """The rule's values, or why it has none; processes are waited for several at a time."""
    if not isinstance(rule, UnitTests):
        seconds = rule.limit if isinstance(rule, OwnFunction) else SECONDS
        return [_attempt(value, conversation, seconds) for conversation in conversations]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(lambda conversation: _attempt(value, conversation, None), conversations))


def _attempt(value: Callable[[Conversation], float], conversation: Conversation, seconds: float | None) -> float | str:
    """The value of one answer, or why there is none."""
    if len(conversation.answer) > CHARACTERS:
        return f"it has more than {CHARACTERS:,} characters"
    try:
        return within(seconds, lambda: value(conversation)) if seconds else value(conversation)
    except TriptychError:
        raise
    except (Exception, SystemExit) as error:  # whatever an answer brings about
        return one_line(f"{type(error).__name__}: {error}")[:200]


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _block(answer: str) -> str:
    """The answer's last fenced block, or all of it."""
    blocks: list[str] = _FENCE.findall(answer)
    return blocks[-1] if blocks else answer

