"""A language model as the judge of answers: a model of one's own, one behind an endpoint, or the policy itself.

It is asked to score one answer (Liu et al. 2023, *G-Eval*: the expected score under the probabilities of the digits),
or which of two is better, in both orders because the place of an answer sways judges (Zheng et al. 2023, *Judging
LLM-as-a-Judge*). The policy itself as judge: Yuan et al. (2024), *Self-Rewarding Language Models*.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jinja2 import StrictUndefined
from pydantic import Field, model_validator

from triptych.data.rendering import Environment, RenderingError, limited
from triptych.data.template import answer_tokens, opening_tokens
from triptych.engine import attention
from triptych.engine.device import autocast
from triptych.engine.endpoint import Endpoint
from triptych.engine.forward import next_token_logits
from triptych.engine.identity import model_digest
from triptych.engine.models import load_policy, load_tokenizer
from triptych.engine.packing import Pack, Segment
from triptych.engine.scoring import Facing, Scorer, Scores, ShardMap, unsharded
from triptych.errors import RewardError
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, UserFiles
from triptych.records import Conversation, Prompt
from triptych.reward.endpoint import EndpointJudge, Replies
from triptych.reward.kind import Opening, RewardConfig
from triptych.reward.making import Making
from triptych.storage import Folder, copy_regular

POLICY = "policy"
TEMPLATES = Path(__file__).parent / "templates"


class JudgeReward(RewardConfig):
    """A language model that scores or compares; nothing is trained.

    Attributes:
        model: "policy", the champion of the round itself, or a model's folder.
        endpoint: an OpenAI-compatible address instead.
        ask: for a "score" of each answer, or to "compare" each two answers to a prompt; an answer's reward is then
            how probably it is preferred, on average over the others (and the prompt's reference, where it has one).
        highest: scores are asked for from 1 to this, and become 0 to 1.
        template: a Jinja file with the question; by default one that comes with Triptych.
    """

    kind: Literal["judge"] = "judge"
    model: str = POLICY
    endpoint: Endpoint | None = None
    ask: Literal["score", "compare"] = "score"
    highest: int = Field(default=5, ge=2, le=9)
    template: str | None = None

    @model_validator(mode="after")
    def _one_judge(self) -> JudgeReward:
        if self.endpoint is not None and self.model != POLICY:
            raise ValueError("needs either a model or an endpoint")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """The model's folder and the template."""
        model = (self.model,) if self.endpoint is None and self.model != POLICY else ()
        return (*model, *((self.template,) if self.template else ()))

    @property
    def is_policy(self) -> bool:
        """Whether the champion of the round is asked."""
        return self.endpoint is None and self.model == POLICY

    def make(self, making: Making) -> Artifact[Result]:
        """A stage that keeps what it is."""
        return making.runner.run(
            making.name, keep_judge, self, UserFiles(self.files),
            policy=making.materials.champion if self.is_policy else None,
        )

    def open(self, opening: Opening) -> LanguageJudge:
        """The judge of these settings, who asks as the folder's template does.

        Raises:
            RewardError: it is a model, and none was given.
        """
        if self.endpoint is not None:
            judge: Choosing = EndpointJudge(opening.as_asked(self.endpoint), opening.cache, opening.shard_map)
        elif (model := opening.models.get(self.model)) is not None:
            judge = LocalJudge(model, opening.shard_map)
        else:
            raise RewardError(f"this reward asks a model ({self.model}), which is not here")
        return LanguageJudge(self, judge, opening.template, identity=opening.identity)


class Choosing(Protocol):
    """Whoever replies one of a few choices."""

    def choose(self, questions: Sequence[str], choices: Sequence[str]) -> list[Replies | None]:
        """For each question how probable each choice is; None where the reply is none of them."""


@dataclass
class LocalJudge:
    """A causal language model in a folder, whose next token after the question is looked at.

    Attributes:
        shard_map: how questions are shared out.
    """

    folder: Path
    shard_map: ShardMap = unsharded

    @cached_property
    def model(self) -> Any:
        """Who is asked."""
        return load_policy(self.folder, attention=attention.NAME, frozen=True)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder)

    def choose(self, questions: Sequence[str], choices: Sequence[str]) -> list[Replies | None]:
        """The softmax over the choices' first tokens.

        Raises:
            RewardError: two choices begin with the same token.
        """
        if not questions:
            return []
        asked = [Prompt.of(question) for question in questions]
        firsts = [tokens[0] for tokens in answer_tokens(self._tokenizer, asked[0], choices)[1]]
        if len(set(firsts)) < len(choices):
            raise RewardError(f"{self.folder}: its tokenizer does not tell {', '.join(choices)} apart by one token")
        rows = [opening_tokens(self._tokenizer, prompt) for prompt in asked]

        def replies(rows: Sequence[Sequence[int]]) -> list[Replies | None]:
            with autocast():
                logits = next_token_logits(self.model, Pack([Segment(row) for row in rows], self.model.device), firsts)
            return [dict(zip(choices, values, strict=True)) for values in torch.softmax(logits, dim=-1).tolist()]

        return self.shard_map(replies, rows, self.model, map(len, rows))


class LanguageJudge:
    """A language model's verdicts as a scorer.

    Attributes:
        asked: how many verdicts were wanted: scores, or pairs.
        unreadable: of these, those whose reply was none of the choices; they count as the middle.
        inconsistent: of the pairs, those where the verdict went with the place and not with the answer.
    """

    learns = False

    @property
    def compares(self) -> bool:
        """See `PairwiseOnly`."""
        return self.config.ask == "compare"

    def facing(self, rivals: dict[str, str]) -> Scorer:
        """See `PairwiseOnly`."""
        return Facing(self, rivals)

    def __init__(
        self, config: JudgeReward, judge: Choosing, template: str, *, name: str = "language judge", identity: str = "",
    ) -> None:
        self.config = config
        self.name = name
        self.identity = identity
        self.asked = self.unreadable = self.inconsistent = 0
        self._judge = judge
        environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            self._template = limited(lambda: environment.from_string(template))
        except RenderingError as error:
            raise RewardError(f"the judge's template: {error}") from error

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """From 0 to 1; where it compares, an answer that has nothing to be compared with gets a half."""
        return self.details(conversations).totals

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        """The scores, and what was counted over them."""
        before = self._counted()
        totals = self._scores(conversations)
        return Scores(totals, counts={name: count - before[name] for name, count in self._counted().items()})

    def _counted(self) -> dict[str, int]:
        counts = {"asked": self.asked, "unreadable": self.unreadable}
        return counts | ({"inconsistent": self.inconsistent} if self.config.ask == "compare" else {})

    def _scores(self, conversations: Sequence[Conversation]) -> list[float]:
        if self.config.ask == "compare":
            return self._by_comparing(conversations)
        digits = [str(digit) for digit in range(1, self.config.highest + 1)]
        questions = [self._question(row.prompt, answer=row.answer) for row in conversations]
        self.asked += len(questions)
        return [self._expected(replies) for replies in self._judge.choose(questions, digits)]

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
        """How probably each first answer is preferred to the second: the mean over both orders.

        Nobody is asked about two that are the same.
        """
        places = [place for place, (first, second) in enumerate(zip(firsts, seconds, strict=True)) if first != second]
        questions = []
        for place in places:
            prompt, first, second = prompts[place], firsts[place], seconds[place]
            questions.append(self._question(prompt, first=first, second=second))
            questions.append(self._question(prompt, first=second, second=first))
        replies = self._judge.choose(questions, ["A", "B"])
        preferences = [0.5] * len(firsts)
        for place, here, there in zip(places, replies[0::2], replies[1::2], strict=True):
            self.asked += 1
            self.unreadable += here is None or there is None
            p, q = (here or {"A": 0.5})["A"], 1 - (there or {"A": 0.5})["A"]
            self.inconsistent += (p - 0.5) * (q - 0.5) < 0
            preferences[place] = (p + q) / 2
        return preferences

    def _expected(self, replies: Replies | None) -> float:
        if replies is None:
            self.unreadable += 1
            return 0.5
        mean = sum(int(digit) * probability for digit, probability in replies.items())
        return (mean - 1) / (self.config.highest - 1)

    def _by_comparing(self, conversations: Sequence[Conversation]) -> list[float]:
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(conversations):
            groups.setdefault(row.prompt.key, []).append(index)
        pairs: list[tuple[int, int | None]] = []
        for members in groups.values():
            pairs += combinations(members, 2)
            pairs += [(i, None) for i in members if conversations[i].prompt.reference]
        won: list[list[float]] = [[] for _ in conversations]
        prompts = [conversations[i].prompt for i, _ in pairs]
        firsts = [conversations[i].answer for i, _ in pairs]
        seconds = [str(conversations[i].prompt.reference) if j is None else conversations[j].answer for i, j in pairs]
        for (i, j), probability in zip(pairs, self.compare(prompts, firsts, seconds), strict=True):
            won[i].append(probability)
            if j is not None:
                won[j].append(1 - probability)
        return [sum(wins) / len(wins) if wins else 0.5 for wins in won]

    def _question(self, prompt: Prompt, **answers: str) -> str:
        # Where answers are compared with the reference, it must not be shown as the right one.
        shown = None if self.config.ask == "compare" else prompt.reference
        given = {"messages": prompt.messages, "prompt": prompt.messages[-1].content, "reference": shown}
        try:
            return limited(lambda: self._template.render(**given, highest=self.config.highest, **answers)).strip()
        except RenderingError as error:
            raise RewardError(f"the judge's template: {error}") from error


class JudgeKept(Result):
    """Nothing is measured of a judge that is kept."""


def keep_judge(
    context: StageContext, config: JudgeReward, sources: Mapping[str, str | Path] | None = None,
    policy: Folder | None = None,
) -> JudgeKept:
    """Leaves `reward.json` and `template.jinja`; a model of one's own stays where it is, and its digest is kept."""
    given = sources or {}
    path = Path(given[config.template]) if config.template else TEMPLATES / f"{config.ask}.jinja"
    try:
        copy_regular(path, context.output / "template.jinja")
    except OSError as error:
        raise RewardError(f"{path}: the template cannot be read: {error.strerror}") from error
    content = config.model_dump(mode="json")
    if config.model in config.named:
        # Its name and what it holds, and no path of this machine.
        content |= {"model": Path(config.model).name, "model_digest": model_digest(Path(given[config.model]))}
    path = context.output / "reward.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return JudgeKept()
