"""Model cards: what a reader of the release needs to know, with metadata that the Hub understands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from triptych.display import one_line, printable
from triptych.engine.sampling import Sampling
from triptych.records import turns
from triptych.release.lineage import ROLES, Lineage, RewardExample, Role, WrittenExample
from triptych.report.summary import AuditSummary, Interval, ModelScore, Summary

LINE_END = "\0"
"""One that stays, also of several; no other text of a card has this character."""

HERE = 'name = "."  # this folder; or its name on the Hub'
TRUNK_HERE = 'trunk = "../base"  # the Base\'s'
"""Lines of the cards' code that name the model, and the trunk of adapters."""

TAG = "triptych"
"""By which the Hub finds what was made here."""

TITLES: dict[Role, str] = {"base": "Base", "instruct": "Instruct", "reward": "Reward"}


@dataclass(frozen=True, slots=True)
class ReleasedFamily:
    """What the cards speak of.

    Attributes:
        recipe: the digest of the resolved recipe.
        described: what `reward.json` says, where the reward is not one model.
        scale: how the outputs of the Reward model become its score.
        reward_examples: both answers of comparisons, which were held out or not.
        answers: to prompts of the test.
        opening, continuation: of a held-out text, and how the Base goes on.
        datasets: of the Hub.
        hardware: that the run was on.
        adapted: the roles whose models are adapters over the Base.
        behind: whether turns lie beside Instruct behind which it answers better.
    """

    name: str
    version: str
    license: str
    language: str
    recipe: str
    lineage: Mapping[Role, Lineage]
    summary: Summary
    reward_examples: tuple[RewardExample, ...] = ()
    described: Mapping[str, Any] | None = None
    scale: Mapping[str, Any] | None = None
    answers: tuple[WrittenExample, ...] = ()
    opening: str | None = None
    continuation: str | None = None
    decoding: Sampling | None = None
    datasets: tuple[str, ...] = ()
    hardware: str = ""
    held_out: bool = True
    adapted: tuple[Role, ...] = ()
    behind: bool = False
    tuned: bool | None = None

    @property
    def champion(self) -> ModelScore | None:
        """The scores of the model released as Instruct."""
        return next((model for model in self.summary.models if model.champion), None)

    @property
    def prompted(self) -> ModelScore | None:
        """The scores of the Base with examples in its prompt."""
        return next((model for model in self.summary.models if model.round is None), None)

    @property
    def few_shot(self) -> bool:
        """Whether the Base is asked behind examples, for it is not tuned."""
        if self.tuned is not None:
            return not self.tuned
        return self.prompted is None or self.prompted.name != "base"

    @property
    def improved(self) -> bool:
        """Whether a round made the released Instruct."""
        return any(round.decision == "promoted" for round in self.summary.rounds)

    @property
    def by_reward(self) -> bool:
        """Whether that round learnt from a reward, and not from pairs or thumbs as they were given."""
        return any(parent.name.startswith("reward") for parent in self.lineage["instruct"].parents)

    @property
    def finetuned(self) -> bool:
        """Whether Instruct learnt demonstrations in the run."""
        return any(file.name.startswith("demonstrations") for file in self.lineage["instruct"].data)

    @property
    def duration(self) -> str:
        """How long the run took, in words that equal runs have in common."""
        hours = self.summary.seconds / 3600
        if hours <= 1:
            return "less than 10 minutes" if hours <= 1 / 6 else "less than an hour"
        return f"about {float(f'{hours:.1g}'):.0f} hours" if hours >= 1.5 else "about an hour"

    @property
    def roles(self) -> tuple[Role, ...]:
        """The models that there are."""
        return tuple(role for role in ROLES if role in self.lineage)

    @property
    def audit(self) -> AuditSummary | None:
        """The audit of the released Reward model, the last that was trained."""
        return self.summary.audits[-1] if self.summary.audits else None


def listed(roles: Sequence[Role], mark: str = "") -> str:
    """The models of a family by their titles, as "Base and Instruct".

    Args:
        mark: around each.
    """
    *before, last = (f"{mark}{TITLES[role]}{mark}" for role in roles)
    return f"{', '.join(before)} and {last}"


def number_of(roles: Sequence[Role]) -> str:
    """How many they are, in a word."""
    return {2: "two", 3: "three"}[len(roles)]


def repository(family: str, role: str) -> str:
    """The name under which a model of the family would stand on the Hub."""
    words = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in family)
    return f"{words.strip('-.')}-{role}"


def model_card(role: Role, family: ReleasedFamily) -> str:
    """The README of one model."""
    template = "composed" if role == "reward" and family.described else role
    return _render(f"{template}.md.jinja", family, role, front_matter=_front_matter(role, family))


def family_card(family: ReleasedFamily) -> str:
    """The README of the whole release."""
    data = ModelCardData(
        license=one_line(family.license), language=one_line(family.language), library_name="transformers",
        datasets=_datasets(family), tags=[TAG, "model-family"],
        model_name=one_line(f"{family.name} {family.version}"),
        eval_results=[result for role in family.roles if role != "base" for result in _results(role, family)] or None,
    )
    return _render("family.md.jinja", family, None, front_matter=Markup(f"---\n{data.to_yaml()}\n---"))


def _front_matter(role: Role, family: ReleasedFamily) -> Markup:
    parents = [
        one_line(parent.name) if parent.hub else repository(family.name, parent.name)
        for parent in family.lineage[role].parents
        # A file's name is nothing that the Hub could link to, and a Reward model guides but is not continued.
        if parent.hub or parent.name in ("base", "instruct")
    ]
    if not parents and any(re.match(r"round-\d+/", parent.name) for parent in family.lineage[role].parents):
        parents = [repository(family.name, "base")]  # what a round made and nobody publishes came of the Base
    is_model = role != "reward" or family.described is None
    data = ModelCardData(
        model_name=one_line(f"{family.name} {TITLES[role]} {family.version}"),
        license=one_line(family.license),
        language=one_line(family.language),
        library_name="transformers" if is_model else None,
        pipeline_tag=("text-classification" if role == "reward" else "text-generation") if is_model else None,
        base_model=parents or None,
        base_model_relation="finetune" if parents else None,
        datasets=_datasets(family),
        eval_results=_results(role, family) or None,
        tags=[TAG, role, *(["reward-model"] if role == "reward" else [])],
    )
    return Markup(f"---\n{data.to_yaml()}\n---")


def _datasets(family: ReleasedFamily) -> list[str] | None:
    return [one_line(name) for name in family.datasets] or None


def _results(role: Role, family: ReleasedFamily) -> list[EvalResult]:
    """What the run measured of a model, for the Hub's `model-index`, which merges results of one task and evidence."""

    def result(
        task: str, data: str, metric: str, name: str, value: float, interval: Interval | None = None,
        evidence: str = "held-out",
    ) -> EvalResult:
        within = f", 95% interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        return EvalResult(
            task_type=task, dataset_type=evidence, dataset_name=data, metric_type=metric,
            metric_name=one_line(name + within), metric_value=round(value, 4),
        )

    judge, results = family.summary.judge, []
    scored = {"base": family.prompted, "instruct": family.champion}.get(role)
    if role == "base" and family.summary.base.bits_per_byte is not None:
        bits = family.summary.base.bits_per_byte
        results.append(result("text-generation", "held-out text of this run", "bits_per_byte", "bits per byte", bits,
                              evidence="held-out-text"))
    if scored:
        results.append(result(
            "text-generation", f"{scored.prompts} test prompts of this run", "judge_score", f"score by {judge}",
            scored.score, scored.interval,
        ))
    for task in family.summary.tasks if role == "instruct" else ():
        results += [
            result("text-generation", f"{model.prompts} prompts of {task.name}", "task_score",
                   f"score by {task.scored_by}", model.score, model.interval, f"held-out-{task.name}")
            for model in task.models if model.champion
        ]
    for benchmark in family.summary.benchmarks:
        measure = benchmark.measures[0]
        results += [
            result("text-generation", benchmark.name, measure.measure.partition("/")[2], measure.measure, score.value,
                   score.interval, f"benchmark-{benchmark.name}")
            for score in measure.scores if (score.champion if role == "instruct" else score.model == role)
        ]
    for measured in family.summary.reward_benchmarks if role == "reward" and family.described is None else ():
        if measured.round == family.summary.reward_benchmarks[-1].round:
            name, whole = list(measured.scores.measures.items())[-1]
            results.append(result(
                "text-classification", measured.scores.name, "accuracy", name, whole.score, whole.interval,
                f"benchmark-{measured.name}",
            ))
    if role == "reward" and family.audit and family.described is None:
        results.append(result(
            "text-classification", f"{family.audit.comparisons} {family.audit.evidence} comparisons of this run",
            "accuracy", "pairwise accuracy", family.audit.accuracy, family.audit.interval, family.audit.evidence,
        ))
    return results


def markdown(text: str) -> str:
    """Text of others as Markdown that shows it on one line and does nothing else: no HTML, link, cell or emphasis."""
    plain = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", plain)


def _written(value: object) -> object:
    """What a card's template prints: every text but that of our own making is escaped."""
    return markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _interval(interval: Interval) -> Markup:
    return Markup(f"[{interval[0]:.3f}, {interval[1]:.3f}]")


def _python(value: object) -> Markup:
    """Turns of a chat, or a text, as Python writes them: on one line, which no fence begins."""
    return Markup(repr(turns(value) if isinstance(value, tuple) else value))


def _printed(text: str) -> Markup:
    """What a program prints, as a block that nothing in it ends."""
    shown = printable(text).replace("\t", "    ")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}text\n{shown}\n{fence}".replace("\n", LINE_END))


def _code(text: str) -> Markup:
    """A digest or a licence as code, which nothing in it ends."""
    return Markup("`" + re.sub("[`|]", "?", one_line(text) or "?") + "`")


def _render(template: str, family: ReleasedFamily, role: Role | None, **fields: Markup) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # of HTML; this is Markdown
        finalize=_written,
    )
    environment.filters |= {"interval": _interval, "code": _code, "python": _python, "printed": _printed}
    text = environment.get_template(template).render(
        family=family, summary=family.summary, role=role, titles=TITLES, here=Markup(HERE),
        trunk_here=Markup(TRUNK_HERE), number=number_of(family.roles), listed=Markup(listed(family.roles, "**")),
        **fields
    )
    return re.sub(r"\n{3,}", "\n\n", text).replace(LINE_END, "\n")  # where a part was left out
