"""A run from its recipe to what it leaves for people, also where it ends early or fails."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from triptych import results
from triptych.cycle import cycle, plan
from triptych.display import printable
from triptych.engine import distributed
from triptych.engine.checkpoint import checkpoint_seconds
from triptych.engine.device import settle
from triptych.engine.training import Optimization
from triptych.engine.vllm import verify_place
from triptych.errors import AuditError, RecipeError, TriptychError, WaitingError
from triptych.family import Family
from triptych.pipeline.forecast import Forecast
from triptych.pipeline.lock import claimed
from triptych.pipeline.runner import Runner, Until
from triptych.preflight.expectation import expect
from triptych.progress import Progress, Silent
from triptych.recipe import Recipe, store
from triptych.report.summary import Summary
from triptych.trackers.process import tracked


def execute(
    recipe: Recipe, folder: Path, progress: Progress, until: str | None = None, file: Path | None = None,
    report: Callable[[Summary, Path], None] | None = None,
) -> Summary | None:
    """Runs the cycle in a folder, or goes on with it, and writes what it came to.

    Args:
        until: the stage after which it ends.
        file: where the recipe stands.
        report: told of what was written, also where the run then raises.

    Returns:
        The summary; None on other ranks than the first, and where the run ended before it had a Base.

    Raises:
        TriptychError: any that a stage raises, when what there is has been written.
        KeyboardInterrupt: the user stopped it; the same call goes on from there.
    """
    distributed.init()
    require_possible(recipe, until, distributed.world_size())
    if not (folder / "ledger.jsonl").exists():  # one that goes on may need it no more
        verify_place(recipe.improve.method.sampler)
    seconds = checkpoint_seconds()
    settle()
    names = [stage.name for stage in plan(recipe)]
    first = distributed.rank() == 0
    reason: str | None = None
    failure: BaseException | None = None
    summary: Summary | None = None
    with claimed(folder) if first else nullcontext():
        runner = Runner(folder, progress if first else Silent(), recipe.seed, seconds, until)
        if first:
            store(recipe, folder / "recipe.yaml", file)
            runner.ledger.plan(names)
            runner.planned = names
        distributed.barrier()
        family = Family()
        if first:
            wanted = names[: names.index(until) + 1] if until else names
            runner.forecast = Forecast(lambda: _expected(recipe, family, wanted, runner.progress))
        try:
            with tracked(recipe.tracker if first else (), folder, runner.progress):
                cycle(recipe, runner, family)
        except Until:
            reason = f"it was to end behind {until}"
        except KeyboardInterrupt as stop:
            failure, reason = stop, "it was stopped"
            runner.progress.say("stopping")  # below the line that is rewritten in place
        except Exception as error:
            failure = error
            reason = printable(error if isinstance(error, TriptychError) else f"{type(error).__name__}: {error}")
        failed = isinstance(failure, Exception)
        done = {artifact.name for artifact in runner.done}
        missing = [name for name in names if name not in done]
        ending = results.Ending(reason, failed, missing) if reason is not None else None
        if first and family.base is not None:
            try:
                with distributed.single_rank(), _undisturbed():
                    summary = results.write(recipe, family, runner, ending)
                    if report:
                        report(summary, folder)
            except Exception as error:
                if not failed:
                    raise
                runner.progress.say(f"error: what the run came to could not be written: {printable(error)}")
        # Other ranks may wait elsewhere for one that failed; torchrun ends them.
        if failure is None or isinstance(failure, AuditError | WaitingError):
            distributed.destroy()
    if failure is not None:
        raise failure
    return summary


def require_possible(recipe: Recipe, until: str | None, ranks: int) -> None:
    """Refuses what no run of the recipe could do. Where ranks are to be started it is said before, and so once.

    Raises:
        RecipeError: it has no such stage, or an optimizer that does not share its work.
    """
    stages = plan(recipe)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        raise RecipeError(f"--until {until}: this recipe has no such stage; it has {', '.join(names)}")
    alone = [stage.name for stage in stages if isinstance(stage.config, Optimization) and stage.config.in_eight_bits]
    if alone and ranks > 1:
        raise RecipeError(f"{alone[0]}: optimizer adamw_8bit works on one rank alone; leave it out")


def _expected(recipe: Recipe, family: Family, stages: Sequence[str], progress: Progress) -> Mapping[str, float]:
    """Seconds of each stage; a run that cannot be estimated is run all the same."""
    try:
        return expect(recipe, family, stages)
    except Exception as error:
        progress.say(f"how long the run takes cannot be told: {printable(error)}")
        return dict.fromkeys(stages[:1], 0.0)  # it is not asked again


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets the first rank finish what it writes: torchrun ends all where one failed, and first asks them to.

    Ray has ranks work in a thread, and asks nobody.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
