"""Rewards that can be verified, and penalties: rules that need no model.

Each rule gives an answer a value from 0 (not as wanted) to 1 (as wanted). The reward is Σ w · value over the rules
that apply to the prompt's task; DeepSeek-R1 (Guo et al. 2025, section 2.2.2) was trained on such rewards alone.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field, field_validator, model_validator
from referencing import Registry

from triptych.configuration import Config
from triptych.engine import ranks
from triptych.engine.scoring import Scores
from triptych.errors import DataError, Fault, RewardError
from triptych.pipeline.stage import Desk, Metrics
from triptych.records import Conversation
from triptych.reward.language import LANGUAGES, share_in
from triptych.reward.sandbox import confinement, run_tests

FUNCTIONS = "functions"
"""The folder of an artifact that keeps the users' own functions."""

REFUSALS = (
    "i'm sorry", "i am sorry", "sorry, but", "i apologize", "i apologise", "i can't", "i cannot", "i can not",
    "i'm unable", "i am unable", "i'm not able", "i am not able", "i won't", "i will not", "as an ai",
    "as a language model",
)
"""How English answers begin that refuse; only the first sentence is looked at."""

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:/\d+)?")
_WORD = re.compile(r"\w+")


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


class Extracting(Rule):
    """A rule about a part of the answer.

    Attributes:
        extract: a regular expression; the first group of its last match is what counts. All of it by default.
    """

    extract: str | None = None

    @field_validator("extract")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None and _compiled(pattern).groups < 1:
            raise ValueError("needs a group, as in `answer: (.*)`")
        return pattern


class ExactMatch(Extracting):
    """1 where the answer is the prompt's reference, but for spaces and (by default) capitals.

    Attributes:
        case: capitals count.
    """

    rule: Literal["exact"] = "exact"
    case: bool = False

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        answer = _extracted(self.extract, conversation.answer)
        return float(self._plain(answer) == self._plain(_reference(conversation)))

    def _plain(self, text: str | None) -> str | None:
        joined = None if text is None else " ".join(text.split())
        return joined if self.case or joined is None else joined.casefold()


class NumericMatch(Extracting):
    """1 where the last number of the answer is the last one of the prompt's reference.

    Numbers may have thousands' commas and be fractions (`3/4`).

    Attributes:
        tolerance: how far they may differ, relative to the reference's.
    """

    rule: Literal["numeric"] = "numeric"
    tolerance: float = Field(default=1e-6, ge=0)

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        wanted = number_in(_reference(conversation))
        if wanted is None:
            raise _unusable(conversation, "rule numeric needs a reference that holds a number")
        text = _extracted(self.extract, conversation.answer)
        found = None if text is None else number_in(text)
        return float(found is not None and abs(found - wanted) <= self.tolerance * max(abs(wanted), 1e-12))


class Pattern(Rule):
    """1 where a regular expression is found in the answer (with `whole`: is all of it)."""

    rule: Literal["pattern"] = "pattern"
    pattern: str
    whole: bool = False

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        find = re.fullmatch if self.whole else re.search
        return float(find(self.pattern, conversation.answer, re.DOTALL) is not None)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return _compiled(pattern).pattern


class JsonSchema(Rule):
    """1 where the answer (or its one fenced block) is JSON that a schema allows; draft 2020-12, nothing is fetched.

    Attributes:
        json_schema: the schema; by default the prompt's reference holds it.
    """

    rule: Literal["json"] = "json"
    json_schema: dict[str, Any] | None = None

    def value(self, conversation: Conversation) -> float:
        """See the class."""
        try:
            content = json.loads(_block(conversation.answer))
        except (ValueError, RecursionError):
            return 0.0
        return float(self._validator(conversation).is_valid(content))

    def _validator(self, conversation: Conversation) -> Any:
        schema = self.json_schema
        if schema is None:
            try:
                schema = json.loads(_reference(conversation))
                Draft202012Validator.check_schema(schema)
            except (ValueError, SchemaError) as error:
                raise _unusable(conversation, f"rule json needs a reference that is a JSON schema: {error}") from None
        return Draft202012Validator(schema, registry=Registry())

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            if schema is not None:
                Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"is no JSON schema: {error.message}") from None
        return schema


class UnitTests(Rule):
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
            _block(conversation.answer), _reference(conversation), seconds=self.seconds, mebibytes=self.mebibytes,
            unconfined=self.unconfined,
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
        answer = conversation.answer
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
        return share_in(self.language, conversation.answer)

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
        answer = conversation.answer.casefold()
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
        first = re.split(r"(?<=[.!?])\s|\n", conversation.answer.strip().replace("’", "'"), maxsplit=1)[0].casefold()
        return float(not any(phrase.casefold() in first for phrase in self.phrases or REFUSALS))


class OwnFunction(Rule):
    """A function of the user's own: `score(conversation) -> float`, any finite number.

    Attributes:
        function: `file.py:name`, the file in the recipe's folder. One file: it may import what is installed, and
            nothing that lies beside it. Its content is part of the reward's identity.
    """

    rule: Literal["function"] = "function"
    function: str = Field(pattern=r"^[^:]+\.py:[A-Za-z_]\w*$")

    @property
    def file(self) -> str:
        """The file, as the recipe names it."""
        return self.function.rpartition(":")[0]


AnyRule = Annotated[
    ExactMatch | NumericMatch | Pattern | JsonSchema | UnitTests | Length | Language | Repetition | Forbidden
    | Refusal | OwnFunction,
    Field(discriminator="rule"),
]


class RulesReward(Config):
    """A reward of rules alone; nothing is trained.

    Attributes:
        rules: each with its weight.
    """

    kind: Literal["rules"] = "rules"
    rules: tuple[AnyRule, ...] = Field(min_length=1)

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the users' own functions."""
        return tuple(rule.file for rule in self.rules if isinstance(rule, OwnFunction))


class Rules:
    """Rules as a scorer.

    Args:
        config: the rules.
        folder: where `functions/` lies with the users' own functions; they are code, which is run.
    """

    name = "rules"

    def __init__(self, config: RulesReward, folder: Path | None = None, *, identity: str = "") -> None:
        self.config = config
        self.folder = folder
        self.identity = identity

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The weighted sum of the rules that apply to each prompt's task."""
        return self.details(conversations).totals

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        """The rewards and each rule's value; None where a rule does not apply."""
        totals = [0.0] * len(conversations)
        parts: dict[str, list[float | None]] = {}
        for name, rule, value in self._rules:
            these = [i for i, each in enumerate(conversations) if not rule.tasks or each.prompt.task in rule.tasks]
            part: list[float | None] = [None] * len(conversations)
            # Each on one rank alone: code that is stopped at a limit need not come out the same on another.
            mine = ranks.share([conversations[i] for i in these])
            for i, found in zip(these, ranks.gathered(_each(rule, value, mine)), strict=True):
                part[i] = found
                totals[i] += rule.weight * found
            parts[name] = part
        return Scores(totals, parts)

    @cached_property
    def _rules(self) -> list[tuple[str, Rule, Callable[[Conversation], float]]]:
        """Every rule with a name that no other has, and what computes it."""
        found: list[tuple[str, Rule, Callable[[Conversation], float]]] = []
        for place, rule in enumerate(self.config.rules):
            name = rule.name or rule.rule
            if name in (other for other, _, _ in found):
                name = f"{name} {place + 1}"
            found.append((name, rule, self._own(place, rule) if isinstance(rule, OwnFunction) else rule.value))
        return found

    def _own(self, place: int, rule: OwnFunction) -> Callable[[Conversation], float]:
        assert self.folder is not None, "own functions need the folder that keeps them"
        path = self.folder / FUNCTIONS / f"{place}.py"
        function = loaded(path, rule.function)

        def value(conversation: Conversation) -> float:
            try:
                given = float(function(conversation))
            except Exception as error:  # whatever a user's function raises
                raise RewardError(f"{rule.function}: {type(error).__name__}: {error}") from error
            if not math.isfinite(given):
                raise RewardError(f"{rule.function}: must give a finite number, got {given}")
            return given

        return value


def keep_rules(
    desk: Desk, config: RulesReward, sources: Mapping[str, str | Path] | None = None, **inputs: Path
) -> Metrics:
    """Leaves `reward.json` and the users' own functions; nothing is trained."""
    for place, rule in enumerate(config.rules):
        if isinstance(rule, OwnFunction):
            kept = desk.output / FUNCTIONS / f"{place}.py"
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(Path((sources or {})[rule.file]).read_bytes())
            loaded(kept, rule.function)
    content = config.model_dump(mode="json")
    for told in content["rules"]:
        if "function" in told:  # no path of this machine
            told["function"] = told["function"].replace("\\", "/").rpartition("/")[2]
    path = desk.output / "reward.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if any(isinstance(rule, UnitTests) for rule in config.rules):
        desk.progress.say(f"unit tests: {confinement()}")
    return {"rules": len(config.rules)}


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
    found = getattr(module, name, None)
    if not callable(found):
        raise RewardError(f"{function}: the file has no function called {name}")
    checked: Callable[[Conversation], Any] = found
    return checked


def number_in(text: str) -> float | None:
    """The last number of a text, or None."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    numerator, _, denominator = found[-1].replace(",", "").partition("/")
    if denominator:
        return float(Fraction(numerator) / int(denominator)) if int(denominator) else None
    return float(numerator)


def _each(rule: Rule, value: Callable[[Conversation], float], conversations: Sequence[Conversation]) -> list[float]:
    """The rule's values; processes are waited for several at a time."""
    if not isinstance(rule, UnitTests):
        return [value(conversation) for conversation in conversations]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(value, conversations))


def _reference(conversation: Conversation) -> str:
    reference = conversation.prompt.reference
    if reference is None:
        raise _unusable(conversation, "missing; a rule compares answers with it. Give it, or name the rule's `tasks`")
    return reference


def _unusable(conversation: Conversation, message: str) -> DataError:
    prompt = conversation.prompt.messages[-1].content
    return DataError([Fault(f"prompt {prompt[:60]!r}", None, "reference", message)])


def _extracted(pattern: str | None, answer: str) -> str | None:
    """What the pattern's group holds in its last match; the answer without a pattern, None without a match."""
    if pattern is None:
        return answer
    found = list(re.finditer(pattern, answer, re.DOTALL))
    return found[-1][1] if found else None


def _block(answer: str) -> str:
    """The answer's last fenced block, or all of it."""
    blocks: list[str] = _FENCE.findall(answer)
    return blocks[-1] if blocks else answer


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
