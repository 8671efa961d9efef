"""Rewards that nobody trains, each tried on a row of the data: what fails there is found here.

So is a model that is to rewrite prompts and cannot be asked. They run under the limits of the run. An endpoint is asked
one question, once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from triptych.engine.endpoint import Endpoint, EndpointClient
from triptych.engine.inspection import inspect
from triptych.errors import TriptychError
from triptych.evaluate.reflection import Reflection
from triptych.pipeline.stage import StageContext
from triptych.preflight.doctor import Finding
from triptych.progress import Silent
from triptych.recipe import Recipe
from triptych.records import Conversation, Prompt
from triptych.reward.endpoint import Replies
from triptych.reward.judge import JudgeReward, LanguageJudge, keep_judge
from triptych.reward.kind import Opening, RewardConfig
from triptych.reward.mixture import MixtureReward
from triptych.reward.remote import RemoteReward, RemoteScorer
from triptych.reward.rules import OwnFunction, Rule, Rules, RulesReward, UnitTests, keep_rules
from triptych.reward.sandbox import confinement

ROWS = 2
"""What fails on so many rows is broken; on the first alone, that answer may be to blame."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A reward that is tried.

    Attributes:
        field: of the recipe that holds it.
        tasks: the tasks whose prompts it scores; all by default.
    """

    field: str
    config: RewardConfig
    tasks: tuple[str, ...] = ()


def try_rewards(
    recipe: Recipe, rows: Sequence[Conversation], memory: int, of_tasks: Mapping[str, Sequence[Prompt]]
) -> Iterator[Finding]:
    """What is wrong with the recipe's rules and judges, and with addresses that score.

    Args:
        rows: prompts of the data with answers, of every task.
        memory: bytes that there are; a judge that does not fit is not loaded.
        of_tasks: the prompts of each task of `evaluate`, by the name of its stage; they get some answer.
    """
    for place, task in enumerate(recipe.evaluate.tasks):
        asked = [Conversation(prompt, prompt.reference or "An answer.") for prompt in of_tasks.get(task.stage, ())]
        yield from _try_rules(recipe, Tried(f"evaluate.tasks[{place}]", task.score), task.score, asked)
    for tried in _untrained(recipe):
        if isinstance(tried.config, RulesReward):
            yield from _try_rules(recipe, tried, tried.config, rows)
        elif isinstance(tried.config, JudgeReward) and rows:
            yield from _try_judge(recipe, tried, tried.config, rows[0], memory)
        elif isinstance(tried.config, RemoteReward):
            yield from _try_remote(tried, tried.config, rows)
    if recipe.prompting is not None and recipe.prompting.reflection is not None:
        yield from _try_reflection(recipe.prompting.reflection)


def _untrained(recipe: Recipe) -> Iterator[Tried]:
    reward, labeller = recipe.reward.model, recipe.labeller
    if isinstance(reward, MixtureReward):
        for place, part in enumerate(reward.parts):
            yield Tried(f"reward.parts[{place}].reward", part.reward, part.tasks)
    else:
        yield Tried("reward", reward)
    if isinstance(recipe.gate.judge, RewardConfig):
        yield Tried("gate.judge", recipe.gate.judge)
    if labeller is not None:
        yield Tried("feedback judged.by", labeller)


def _try_rules(
    recipe: Recipe, tried: Tried, config: RulesReward, rows: Sequence[Conversation]
) -> Iterator[Finding]:
    """Each rule by itself, on rows that it applies to and whose reference it can use."""
    for place, rule in enumerate(config.rules):
        field = f"{tried.field}.rules[{place}]"
        if isinstance(rule, UnitTests) and not rule.unconfined and not confinement().whole:
            continue  # the doctor says it
        applied = [
            row for row in rows
            if all(not tasks or row.prompt.task in tasks for tasks in (rule.tasks, tried.tasks))
        ]
        if not applied and rows:
            yield Finding(
                f"no prompt has the task {' or '.join(rule.tasks or tried.tasks)}", field,
                "the rule is never applied", "name tasks that the prompts have, or leave `tasks` out", stops=True,
            )
        usable = [row for row in applied if rule.fault(row.prompt) is None]
        yield from _try_rule(recipe, field, rule, usable[:ROWS])


def _try_rule(recipe: Recipe, field: str, rule: Rule, rows: Sequence[Conversation]) -> Iterator[Finding]:
    config = RulesReward.model_construct(kind="rules", rules=(rule,))
    named = f"{field}.function" if isinstance(rule, OwnFunction) else field
    failures: list[str] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            keep_rules(_context(folder, recipe.seed), config, recipe.reward_files)
            scorer = Rules(config, folder)
            for row in rows:
                notes = scorer.details([row]).notes
                failures += notes.values()
                if not notes:
                    break
        except TriptychError as error:
            yield Finding(str(error), named, "it cannot score any answer", "mend it", stops=True)
            return
    if failures:
        what = rule.function if isinstance(rule, OwnFunction) else f"rule {getattr(rule, 'rule', '')}"
        broken = len(failures) == len(rows)
        yield Finding(
            f"{what} {re.sub(', which gets [^:]*:', ':', failures[0])}", named,
            "an answer on which it fails gets what rewards least" if not broken else
            "it scores none of the answers that were tried", "mend it", stops=broken,
        )


class _Silence:
    """A model that replies nothing, so that the questions are written and nobody is asked."""

    def choose(self, questions: Sequence[str], choices: Sequence[str]) -> list[Replies | None]:
        """See `Choosing`."""
        return [None for _ in questions]


def _try_judge(
    recipe: Recipe, tried: Tried, config: JudgeReward, row: Conversation, memory: int
) -> Iterator[Finding]:
    """The question written for one answer and, where there is somebody to ask already, asked."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            keep_judge(_context(folder, recipe.seed), config.model_copy(update={"model": "policy"}), config.files)
            template = (folder / "template.jinja").read_text(encoding="utf-8")
            judge = LanguageJudge(config, _Silence(), template)
            _ask(judge, row)
        except TriptychError as error:
            field = f"{tried.field}.template" if config.template else tried.field
            where = f"{config.template}: " if config.template else ""
            yield Finding(f"{where}{error}", field, "no answer can be judged", "mend it", stops=True)
            return
        try:
            asking = config
            if config.endpoint is not None:
                asking = config.model_copy(update={"endpoint": once(config.endpoint)})
            elif config.is_policy or not _fits(config.files[config.model], memory):
                return
            judge = asking.open(Opening(folder, "", template, config.files, None, ()))
            asked = _ask(judge, row)
        except TriptychError as error:
            field = f"{tried.field}.{'model' if config.endpoint is None else 'endpoint'}"
            yield Finding(str(error), field, "no answer can be judged", "mend it", stops=True)
            return
        if judge.unreadable == asked:
            yield Finding(
                "its reply to one question is none of the choices", tried.field,
                "an unreadable reply counts as the middle, and tells no answers apart",
                "ask for one of the choices alone in the template, or name another model",
            )


def _try_reflection(config: Reflection) -> Iterator[Finding]:
    """The model that reflects on prompts looked at or, behind an address, asked once."""
    field = "prompting.reflection.model"
    try:
        for folder in config.files.values():
            inspect(folder)
        if config.endpoint is not None:
            field = "prompting.reflection.endpoint"
            EndpointClient(once(config.endpoint)).write("Reply with one word.", 16)
    except TriptychError as error:
        yield Finding(str(error), field, "no prompt can be rewritten", "mend it", stops=True)


def _try_remote(tried: Tried, config: RemoteReward, rows: Sequence[Conversation]) -> Iterator[Finding]:
    """One answer scored, of a task whose prompts it scores."""
    row = next((row for row in rows if not tried.tasks or row.prompt.task in tried.tasks), None)
    if row is None:
        return
    try:
        RemoteScorer(config.model_copy(update={"endpoint": once(config.endpoint)})).score([row])
    except TriptychError as error:
        yield Finding(str(error), f"{tried.field}.endpoint", "no answer can be scored", "mend it", stops=True)


def once(endpoint: Endpoint) -> Endpoint:
    """The same without a second attempt."""
    return endpoint.model_copy(update={"retries": 0})


def _ask(judge: LanguageJudge, row: Conversation) -> int:
    """Has it judge one answer, as it will; of how many verdicts."""
    if judge.config.ask == "compare":
        judge.compare([row.prompt], [row.answer], [f"{row.answer} "])
    else:
        judge.score([row])
    return judge.asked


def _fits(folder: Path, memory: int) -> bool:
    """Whether a model may be loaded here."""
    return 4 * sum(math.prod(tensor.shape) for tensor in inspect(folder).values()) < memory


def _context(folder: Path, seed: int) -> StageContext:
    return StageContext(folder, folder, Silent(), seed, checkpoint_seconds=60.0)
