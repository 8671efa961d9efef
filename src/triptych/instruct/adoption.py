"""A Base that is an Instruct model already, taken as it is: nothing is trained."""

from __future__ import annotations

import shutil

from triptych.configuration import Config
from triptych.engine import distributed
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.storage import Folder


class Adoption(Config):
    """Nothing can be told."""


class Adopted(Result):
    """Nothing was learnt."""


def adopt(context: StageContext, config: Adoption, base: Folder) -> Adopted:
    """Leaves the Base's model as the first champion."""
    if distributed.rank() == 0:
        shutil.copytree(base / "model", context.output / "model")
    return Adopted()
