"""Runs stages in a run folder: skips what is done, resumes what was begun, keeps what was computed.

::

    runs/NAME/
      recipe.yaml         the resolved recipe of the last command
      ledger.jsonl        what happened when
      artifacts/STAGE-FINGERPRINT/   finished stages
      work/STAGE-FINGERPRINT/        a stage under way: its output so far and its checkpoints

A changed recipe gives other fingerprints and so other folders: nothing that was computed is overwritten.
"""

from __future__ import annotations

import errno
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from triptych import __version__
from triptych.configuration import Config, identity_of
from triptych.data.files import digest
from triptych.display import duration, one_line
from triptych.engine import distributed
from triptych.engine.device import forget_peak, give_back, lacks_memory, peak_memory
from triptych.engine.identity import is_model, model_digest
from triptych.errors import RunError
from triptych.pipeline.artifact import Artifact, folder_name, publish, seal
from triptych.pipeline.call import StageCall
from triptych.pipeline.fingerprint import code_version, fingerprint
from triptych.pipeline.forecast import Forecast
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.progress import Progress

P = ParamSpec("P")
C = TypeVar("C", bound=Config)
R = TypeVar("R", bound=Result)
T = TypeVar("T")


class Until(Exception):  # noqa: N818 (it is no error: the user asked to stop here)
    """The stage named by `--until` is done."""


@dataclass
class Runner:
    """Runs one run folder's stages.

    Attributes:
        folder: `runs/NAME`.
        until: the stage after which to stop.
        done: the artifacts of this run, in order.
        planned: the names of its stages, where they are known beforehand; for whoever watches.
        forecast: of how long they take; for whoever watches.
    """

    folder: Path
    progress: Progress
    seed: int
    checkpoint_seconds: float = 60.0
    until: str | None = None
    done: list[Artifact[Any]] = field(default_factory=list)
    planned: Sequence[str] = ()
    forecast: Forecast = field(default_factory=Forecast)

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return Ledger(self.folder / "ledger.jsonl")

    def run(
        self, name: str, work: Callable[Concatenate[StageContext, C, P], R], config: C, /,
        *args: P.args, **kwargs: P.kwargs,
    ) -> Artifact[R]:
        """The stage's artifact: found, or computed now.

        Args:
            name: unique in the run, as "round-1/reward".
            work: the stage, called with a context, its settings and the arguments; see :class:`StageCall` for what
                they mean.

        Raises:
            Until: the stage before this one was the last one wanted.
        """
        if self.done and self.done[-1].name == self.until:
            raise Until(self.until)
        stage = StageCall.of(name, work, config, args, kwargs)
        try:
            artifact = self._found_or_computed(stage)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(
                    f"the disk is full: {stage.name} could not write to {self.folder}. Free some space and give the "
                    "same command again; everything finished is kept"
                ) from error
            raise
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            raise RunError(
                f"{stage.name} needs more memory than there is ({one_line(str(error))[:200]}). `triptych check RECIPE "
                "--fit` names the settings with which it fits: a smaller micro_batch, activation_checkpointing, lora, "
                "quantization. Everything finished is kept"
            ) from error
        self.done.append(artifact)
        return artifact

    def outside(self, act: Callable[[], T], planned: T) -> T:
        """Does what no stage does, as waiting for people; a plan does not, and goes on with `planned`.

        Of several ranks the first does it, and all have its result or its error.
        """
        return distributed.on_first(act)

    def _found_or_computed(self, stage: StageCall[R]) -> Artifact[R]:
        sources = _digests(stage.sources)
        mark = self._fingerprint(stage, sources)
        label = folder_name(stage.name, mark)
        destination = self.folder / "artifacts" / label
        artifact = Artifact.open(stage.name, destination, stage.kind)
        if distributed.broadcast(artifact is None):
            return self._compute(stage, mark, sources, self.folder / "work" / label, destination)
        if artifact is None:
            raise RunError(f"{destination} is not to be seen from every machine; ranks need one folder for the run")
        if distributed.rank() == 0:
            shutil.rmtree(self.folder / "work" / label, ignore_errors=True)
        self._prove(artifact, mark)
        self.forecast.finish(stage.name)
        self._tell_stage(stage.name, "(done before)")
        self._record("reused", stage, fingerprint=mark, digest=artifact.digest)
        return artifact

    def _tell_stage(self, name: str, note: str = "") -> None:
        place = f"{self.planned.index(name) + 1} of {len(self.planned)}" if name in self.planned else ""
        parts = (f"{place} {note}".strip(), "" if note else self.forecast.sentence)
        self.progress.stage(name, ", ".join(filter(None, parts)))

    def _prove(self, artifact: Artifact[Any], mark: str) -> None:
        """Sees that an artifact is what was written: its files by its manifest, and this by the ledger.

        Raises:
            RunError: it is not; on every rank.
        """
        damage = None
        if distributed.rank() == 0:
            written = self.ledger.digest(mark)
            if written is None:
                self.progress.say(f"{self.ledger.path} does not know {artifact.name}; it is taken as it is")
            elif written != artifact.digest:
                damage = f"manifest.json was changed: {self.ledger.path} has another digest of it"
            damage = damage or artifact.damage()
        if damage := distributed.broadcast(damage):
            raise RunError(f"{artifact.folder}: {damage}; delete this folder to compute it again")

    def _record(self, event: str, stage: StageCall[Any], **details: Any) -> None:
        if distributed.rank() == 0:
            self.ledger.add(event, stage.name, **details)

    def _fingerprint(self, stage: StageCall[Any], sources: dict[str, str]) -> str:
        inputs = {name: artifact.digest for name, artifact in stage.parents.items()} | sources
        config = [stage.name, self.seed, identity_of(stage.config), stage.values]
        return fingerprint(config, inputs, code_version(*stage.modules))

    def _compute(
        self, stage: StageCall[R], mark: str, sources: Mapping[str, str], work: Path, destination: Path
    ) -> Artifact[R]:
        """Does the stage's work; every rank takes part in it, and the first one's output becomes the artifact."""
        first = distributed.rank() == 0
        whole = not work.exists()  # else it goes on where it was interrupted
        output = work / ("output" if first else f"rank-{distributed.rank()}")
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        self._tell_stage(stage.name)
        left = self.forecast.left
        self._record("started", stage, fingerprint=mark, **({"left": round(left)} if left else {}))
        forget_peak()
        began = time.monotonic()

        def finish(event: str, **details: Any) -> None:
            seconds = round(time.monotonic() - began, 3)
            self._record(event, stage, fingerprint=mark, seconds=seconds, peak_gib=round(peak_memory(), 3), **details)

        context = StageContext(output, work, self.progress, self.seed, self.checkpoint_seconds, run=self.folder)
        try:
            if first or not stage.alone:
                with distributed.single_rank() if stage.alone else nullcontext():
                    result = stage.carried_out(context)
            distributed.barrier()
            if first:
                now = _digests(stage.sources)
                if changed := [name for name in sources if now[name] != sources[name]]:
                    raise RunError(
                        f"{stage.name}: {', '.join(changed)} was changed while it was read, so that nobody knows which "
                        "content this was made of; give the same command again"
                    )
                for problem in result.problems:
                    self._record("warned", stage, fingerprint=mark, what=problem)
                # Its digest is kept before it gets its place: no artifact is there that the ledger does not know.
                finish("finished", digest=seal(output, self._manifest(stage, mark, sources, result)))
                publish(output, destination)
        except KeyboardInterrupt:
            finish("stopped")
            raise
        except Exception:
            finish("failed")
            raise
        self.forecast.finish(stage.name, time.monotonic() - began if whole else None)
        if first:
            shutil.rmtree(work)
            self.progress.say(f"{result.headline or 'done'} ({duration(time.monotonic() - began)})")
        give_back()
        distributed.barrier()
        artifact = Artifact.open(stage.name, destination, stage.kind)
        if artifact is None:
            raise RunError(f"{destination} is not to be seen from every machine; ranks need one folder for the run")
        return artifact

    def _manifest(self, stage: StageCall[R], mark: str, sources: Mapping[str, str], result: R) -> dict[str, Any]:
        import torch
        import transformers

        return {
            "kind": stage.work.__module__.removeprefix("triptych."),
            "stage": stage.name,
            "fingerprint": mark,
            "seed": self.seed,
            "config": stage.config.model_dump(mode="json"),
            "parents": {
                name: {"stage": artifact.name, "digest": artifact.digest}
                for name, artifact in stage.parents.items()
            },
            "sources": dict(sources),
            "metrics": result.model_dump(mode="json"),
            "headline": result.headline,
            "versions": {
                "triptych": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }


def _digests(sources: Mapping[str, str | Path]) -> dict[str, str]:
    """What the user's files hold; a name that is no file (a dataset, a Hub model) stands for itself."""
    def held(path: str | Path) -> str:
        if not isinstance(path, Path) or not path.exists():
            return str(path)
        return model_digest(path) if is_model(path) else digest(path)

    return {name: held(path) for name, path in sorted(sources.items())}
