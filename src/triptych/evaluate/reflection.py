"""System prompts that a language model rewrites by reflection on what went wrong behind them.

GEPA (Agrawal et al. 2025, *GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning*, algorithm 1), by
its authors' library. A parent is drawn from the pool: of the candidates that are best on some prompt of D_pareto and
not dominated, each as often as it is best (algorithm 2). It answers a few prompts of D_feedback. The language model
reads them, the answers and what was wrong with these, and writes another system prompt. Where that scores more on the
same few prompts, it answers D_pareto and joins the pool. There is one module, the system prompt, and nothing is merged.

What is ours is what an answer costs: no answer is sampled twice, and a rewriting begins only where the budget holds
all that it may take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydantic import Field, model_validator

from triptych.configuration import Config, UserFile
from triptych.display import printable
from triptych.engine import distributed
from triptych.engine.endpoint import Endpoint, EndpointClient
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.errors import TriptychError
from triptych.evaluate.preamble import Attempt, Examinee, Preamble
from triptych.instructions.following import unfollowed
from triptych.pipeline.stage import StageContext
from triptych.records import Check, Prompt, digest_of, split_reasoning
from triptych.storage import append_line, read_rows

if TYPE_CHECKING:
    from gepa import EvaluationBatch

LIBRARY = "gepa"
MISSING = f"needs the library {LIBRARY}: pip install 'triptych[gepa]'"
POLICY = "policy"
SYSTEM = "system prompt"
"""What is rewritten, as the library's candidates name it."""
MINIBATCH = 3
"""Answers that are reflected on at a time, as in the paper."""
PARETO = 24
"""Prompts at most on which candidates of the pool are compared."""
REPLY = 512
"""Tokens at most of what the reflecting model writes that are read."""
THOUGHT = 4096
"""Tokens at most that a model behind an address may write, with what it thinks, which it may not show."""
LONGEST = 2000
"""Letters at most of a rewritten prompt."""
QUOTED = 1000
"""Letters at most of a prompt, an answer or a reference that the reflecting model is shown."""
KEPT = 2
"""So many rewritten prompts at most become candidates of the search, the best of the pool."""


class Reflection(Config):
    """Who rewrites system prompts, and how often.

    Attributes:
        model: "policy", the model itself whose prompt is searched for, or a model's folder.
        endpoint: an OpenAI-compatible address instead.
        rewrites: prompts at most that it writes.
    """

    model: UserFile = UserFile(POLICY, Path(POLICY))
    endpoint: Endpoint | None = None
    rewrites: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.endpoint is not None and self.model.name != POLICY:
            raise ValueError("needs either a model or an endpoint")
        if find_spec(LIBRARY) is None:
            raise ValueError(MISSING)
        return self

    @property
    def files(self) -> dict[str, Path]:
        """The model's folder, where it is one, by its name."""
        return {self.model.name: self.model.path} if self.endpoint is None and self.model.name != POLICY else {}


class Reflector(Protocol):
    """A language model that reads what went wrong, and writes."""

    def write(self, question: str, number: int) -> tuple[str, int] | None:
        """What it replies and how many tokens that has, `REPLY` at most; None where the question is too long for it.

        Args:
            number: of the question, by which the same one gets another reply.

        Raises:
            EndpointError: it is behind an address, and does not reply.
        """


@dataclass
class ReflectingModel:
    """A model in a folder, or the one itself whose prompt is searched for; it samples at temperature 1."""

    policy: Policy
    seed: int

    def write(self, question: str, number: int) -> tuple[str, int] | None:
        """See `Reflector`."""
        prompt, context = Prompt.of(question), self.policy.context
        if context is not None and len(self.policy.render(prompt)) + REPLY > context:
            return None
        ((rollout,),) = self.policy.write([prompt], Sampling(REPLY, seed=self.seed + number))
        return rollout.answer, len(rollout.tokens)


@dataclass
class ReflectingEndpoint:
    """A model behind an address. What it replied is kept, so that a search that was interrupted goes on alike.

    Attributes:
        tokenizer: of the model whose prompt is searched for, by which a reply is measured and cut.
        kept: a file with a line for each reply.
    """

    client: EndpointClient
    tokenizer: Any
    kept: Path

    def write(self, question: str, number: int) -> tuple[str, int] | None:
        """See `Reflector`."""
        tokens = self.tokenizer.encode(distributed.on_first(lambda: self._reply(question, number)),
                                       add_special_tokens=False)
        return self.tokenizer.decode(tokens[:REPLY]), len(tokens[:REPLY])

    def _reply(self, question: str, number: int) -> str:
        asked = digest_of(self.client.config.url, self.client.config.model, question, str(number))
        replied: str | None = next((row["replied"] for row in read_rows(self.kept) if row["asked"] == asked), None)
        if replied is None:
            replied = printable(self.client.write(question, THOUGHT))
            append_line(self.kept, json.dumps({"asked": asked, "replied": replied}))
        return replied


def reflector_of(
    config: Reflection, policy: Policy, sources: Mapping[str, str | Path], context: StageContext
) -> Reflector:
    """Whoever the settings name.

    Args:
        policy: whose prompt is searched for.
        sources: where the folder lies that they name.
    """
    if config.endpoint is not None:
        kept = context.scratch / "reflections.jsonl"
        return ReflectingEndpoint(EndpointClient(config.endpoint), policy.tokenizer, kept)
    own = config.model.name == POLICY
    return ReflectingModel(policy if own else Policy.open(Path(sources[config.model.name])), context.seed)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What came of reflection.

    Attributes:
        systems: the best prompts of the pool that were rewritten, the best first.
        rewrites: how many prompts were written.
        accepted: how many of them joined the pool.
    """

    systems: tuple[str, ...] = ()
    rewrites: int = 0
    accepted: int = 0


def rewrite(
    examinee: Examinee, reflector: Reflector, systems: Sequence[str | None], prompts: Sequence[Prompt], *,
    rewrites: int, tokens: int, seed: int,
) -> Rewritten:
    """Rewrites the best of some system prompts, and what comes of it, until tokens or rewrites are used up.

    Args:
        systems: with which it begins; None for none. They all answer D_pareto, and the best is the first of the pool.
        prompts: half of them are D_pareto, `PARETO` at most, and the others D_feedback.
        tokens: so many at most are sampled, the reflecting model's included.

    Raises:
        TriptychError: an answer could not be scored, or the reflecting model does not reply.
    """
    from gepa import optimize

    rewriting = _Rewriting(examinee, reflector, prompts, rewrites, examinee.sampled + tokens)
    longest = examinee.decoding.max_tokens
    # The systems that it begins with take half of the tokens at most, as long as their answers may be.
    size = min(PARETO, len(prompts) // 2, tokens // (2 * longest * len(systems)))
    pareto, feedback = list(range(size)), list(range(size, len(prompts)))
    rewriting.costs = (2 * min(MINIBATCH, len(feedback)) + size) * longest + REPLY
    if not pareto or rewriting.stopped():
        examinee.progress.say("no prompt is rewritten: there are too few tokens or validation prompts to reflect on")
        return Rewritten()
    first = max(systems, key=lambda system: sum(row.score for row in rewriting.attempts(system or "", pareto)))
    outcome = optimize(
        seed_candidate={SYSTEM: first or ""}, trainset=feedback, valset=pareto, adapter=rewriting,
        reflection_minibatch_size=min(MINIBATCH, len(feedback)), skip_perfect_score=False, seed=seed,
        stop_callbacks=lambda state: rewriting.stopped(), logger=_NoLog(),
    )
    if rewriting.error is not None:
        raise rewriting.error
    pool = sorted(range(1, len(outcome.candidates)), key=lambda place: -outcome.val_aggregate_scores[place])
    texts = dict.fromkeys(outcome.candidates[place][SYSTEM] for place in pool)
    examinee.progress.say(
        f"{rewriting.written} prompts rewritten by reflection, {len(texts)} better on what they were written from"
    )
    return Rewritten(tuple(texts)[:KEPT], rewriting.written, len(texts))


class _NoLog:
    """Takes what the library would print."""

    def log(self, message: str) -> None:
        """Nothing."""


@dataclass
class _Rewriting:
    """What the library asks of a program that it optimises (its `GEPAAdapter`): here a model behind a system prompt.

    A row of its data is the place of a prompt. The library goes on behind an error of its proposer, so an error of the
    reflecting model is kept here and ends the search.

    Attributes:
        most: so many prompts are written.
        limit: of the examinee's tokens.
        costs: tokens that one rewriting takes at the most.
        written: prompts so far.
        answered: what was answered already, by system prompt and place.
    """

    examinee: Examinee
    reflector: Reflector
    prompts: Sequence[Prompt]
    most: int
    limit: int
    costs: int = 0
    written: int = 0
    full: bool = False
    error: TriptychError | None = None
    answered: dict[tuple[str, int], Attempt] = field(default_factory=dict)

    def stopped(self) -> bool:
        """Whether no other prompt is written."""
        over = self.written >= self.most or self.examinee.sampled + self.costs > self.limit
        return over or self.full or self.error is not None

    def attempts(self, system: str, places: Sequence[int]) -> list[Attempt]:
        """The answers behind a system prompt, each sampled once."""
        new = [place for place in dict.fromkeys(places) if (system, place) not in self.answered]
        if new:
            messages = Preamble(system or None, ()).messages
            attempts = self.examinee.ask(messages, [self.prompts[place] for place in new])
            self.answered |= {(system, place): row for place, row in zip(new, attempts, strict=True)}
        return [self.answered[system, place] for place in places]

    def evaluate(
        self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Attempt, Attempt]:
        """See the library."""
        from gepa import EvaluationBatch

        rows = self.attempts(candidate[SYSTEM], batch)
        return EvaluationBatch(rows, [row.score for row in rows], rows if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch[Attempt, Attempt], components_to_update: list[str]
    ) -> dict[str, list[dict[str, str]]]:
        """See the library."""
        once = {id(row): row for row in eval_batch.trajectories or ()}  # of few prompts some are repeated
        return {SYSTEM: [shown(row) for row in once.values()]}

    def propose_new_texts(
        self, candidate: dict[str, str], reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """See the library; no text where the reflecting model gave none."""
        from gepa.strategies.instruction_proposal import InstructionProposalSignature as Proposal

        question = Proposal.prompt_renderer({
            "current_instruction_doc": candidate[SYSTEM], "dataset_with_feedback": reflective_dataset[SYSTEM],
        })
        try:
            reply = self.reflector.write(str(question), self.written)
        except TriptychError as error:
            self.error = error
            return {}
        if reply is None:
            self.full = True
            self.examinee.progress.say("the reflecting model's context is too short for what went wrong")
            return {}
        text, tokens = reply
        self.written += 1
        self.examinee.sampled += tokens
        new = Proposal.output_extractor(split_reasoning(printable(text))[1].strip())["new_instruction"]
        return {SYSTEM: new[:LONGEST].strip()} if new else {}


def shown(attempt: Attempt) -> dict[str, str]:
    """An answer as the reflecting model is shown it, in the library's three fields."""
    prompt, answer = attempt.conversation.prompt, attempt.conversation.answer
    asked = "\n\n".join(
        turn.shown if turn.role == "user" else f"[{turn.role}] {turn.shown}"
        for turn in prompt.messages if turn.role != "system"
    )
    parts = ", ".join(f"{name} {value:.3g}" for name, value in attempt.parts.items())
    said = [f"Score {attempt.score:.3g}{f' ({parts})' if parts else ''}."]
    if prompt.checks:
        wrong = unfollowed(prompt, answer)
        said.append(f"Instructions that it does not follow: {'; '.join(map(_named, wrong)) or 'none'}.")
    if prompt.reference is not None:
        said.append(f"A right answer: {_quoted(prompt.reference)}")
    return {"Inputs": _quoted(asked), "Generated Outputs": _quoted(answer) or "(nothing)", "Feedback": "\n".join(said)}


def _named(check: Check) -> str:
    """An instruction's kind with its arguments, as `length_constraints:number_words (num_words: 40)`."""
    arguments = ", ".join(f"{name}: {value}" for name, value in check.arguments.items() if value is not None)
    return f"{check.kind} ({_quoted(arguments)})" if arguments else check.kind


def _quoted(text: str) -> str:
    return text if len(text := text.strip()) <= QUOTED else f"{text[:QUOTED]} …"
