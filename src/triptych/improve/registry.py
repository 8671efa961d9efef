"""Every method of improvement."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from triptych.configuration import tagged
from triptych.improve.best_of_n import BestOfNMethod
from triptych.improve.dpo import DpoMethod
from triptych.improve.grpo import GrpoMethod
from triptych.improve.gspo import GspoMethod
from triptych.improve.kto import KtoMethod
from triptych.improve.loop import Improvement
from triptych.improve.method import Method
from triptych.improve.ppo import PpoMethod
from triptych.improve.rloo import RlooMethod

METHODS: tuple[type[Method[Any, Any]], ...] = (
    GrpoMethod,
    GspoMethod,
    RlooMethod,
    PpoMethod,
    DpoMethod,
    KtoMethod,
    BestOfNMethod,
)

if TYPE_CHECKING:
    AnyMethod = Improvement
    """The settings of any method."""
else:
    AnyMethod = Annotated[
        reduce(or_, (method.settings for method in METHODS)), Field(discriminator="method"), tagged("method", "grpo"),
    ]


def method_of(config: Improvement) -> type[Method[Any, Any]]:
    """The method that these are settings of."""
    return next(method for method in METHODS if isinstance(config, method.settings))
