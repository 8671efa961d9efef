"""What a round learns from: comparisons and thumbs, from files, of judges who label, and of people."""

from __future__ import annotations

from pathlib import Path

from triptych.family import Round, Start
from triptych.feedback.labelling import label
from triptych.people.attendance import Attendance
from triptych.people.inbox import PeopleLabelling, add_comparisons, add_thumbs
from triptych.people.questions import Form
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import UserFiles
from triptych.recipe import Recipe
from triptych.reward.making import Materials, make_reward
from triptych.reward.registry import scorer_of


def collect_comparisons(
    recipe: Recipe, runner: Runner, number: int, champion: Artifact[Result], start: Start, earlier: Round | None
) -> Artifact[Result] | None:
    """The comparisons of a round: those from files, and new ones of what the champion writes; None without any."""
    before = earlier.feedback if earlier else start.data if recipe.comparison_files else None
    thumbs = earlier.thumbs if earlier else None
    if recipe.people_give == "comparisons":
        given = _given_by_people(recipe, runner, "comparisons", number, required=before is None)
        return before if given is None else runner.run(
            f"round-{number}/feedback", add_comparisons, _labelling(recipe), data=start.data, sources=given,
            earlier=before, thumbs=thumbs,
        )
    if (labelling := recipe.labelling) is None:
        return before
    judge = start.judge
    if (by := recipe.labeller) is not None:
        made = make_reward(runner, f"round-{number}/labeller", by, Materials(champion=champion))[""]
        judge = scorer_of(runner, by, made, champion, "a language model")
    return runner.run(
        f"round-{number}/feedback", label, labelling, data=start.data, author=champion, judge=judge, round=number,
        earlier=before, thumbs=thumbs, cross_fit=recipe.cross_fit is True,
    )


def collect_thumbs(
    recipe: Recipe, runner: Runner, current: Round, start: Start, earlier: Round | None
) -> Artifact[Result] | None:
    """The thumbs up to a round, those from files and people's own; None where people gave none."""
    before = earlier.thumbs if earlier else None
    if recipe.people_give != "thumbs":
        return before
    required = before is None and not recipe.thumb_files
    given = _given_by_people(recipe, runner, "thumbs", current.number, required)
    return before if given is None else runner.run(
        f"round-{current.number}/thumbs", add_thumbs, _labelling(recipe), data=start.data, sources=given,
        earlier=before or (start.data if recipe.thumb_files else None), comparisons=current.feedback,
    )


def _given_by_people(recipe: Recipe, runner: Runner, form: Form, number: int, required: bool) -> UserFiles | None:
    """What people added for a round; None where it is nothing.

    Raises:
        RunError: it is nothing, and there is no other feedback of that form.
    """
    file = recipe.people
    assert file is not None
    planned: Path | None = file.path
    people = Attendance(runner.folder, runner.progress)
    taken = runner.outside(lambda: people.feedback(form, file.path, number, recipe.wrong_rows, required), planned)
    return None if taken is None else UserFiles({file.name: taken})


def _labelling(recipe: Recipe) -> PeopleLabelling:
    """What becomes of what people say."""
    return PeopleLabelling(
        heldout=recipe.splits.heldout, cross_fit=recipe.cross_fit, wrong_rows=recipe.wrong_rows
    )
