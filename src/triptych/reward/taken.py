"""What a recipe says of a reward that was made elsewhere, and that nothing here trains."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BeforeValidator, Field

from triptych.engine.endpoint import Endpoint, is_address
from triptych.engine.hub import ModelPlace
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.reward.kind import RewardConfig
from triptych.reward.making import Making
from triptych.reward.remote import scores_at


class TakenReward(RewardConfig):
    """A reward that was made elsewhere: a sequence classifier, or what Triptych left of a reward of any kind.

    Attributes:
        from_: the folder of a classifier, of a reward, a release or a run, or a classifier's name on the Hub.
        allow_endpoint: addresses that what is taken may send text to.
        allow_key: environment variables whose values it may send there.
        allow_functions: whether its own functions may run, and the code of its rule `tests`.
        allow_template: whether its judge's question may be a template of its own.
        allow_model: folders of models that its judges may ask, by the folders' names.
    """

    kind: Literal["taken"] = "taken"
    from_: ModelPlace = Field(alias="from")
    allow_endpoint: tuple[str, ...] = ()
    allow_key: tuple[str, ...] = ()
    allow_functions: bool = False
    allow_template: bool = False
    allow_model: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """The folders of the models that it may ask."""
        return self.allow_model

    def make(self, making: Making) -> Artifact[Result]:
        """What was taken before the first round, as it is in each."""
        return making.materials.taken[self.from_.name]


def _made_elsewhere(value: Any) -> Any:
    """`from` alone says of what kind a reward is: that which is there, or what is behind an address."""
    if not isinstance(value, dict) or "from" not in value or "kind" in value:
        return value
    if not (isinstance(value["from"], str) and is_address(value["from"])):
        return {"kind": "taken", **value}
    url, _, model = value["from"].partition("#")
    if not model:
        raise ValueError(f"`from` is an address: name the model that is asked there too, as in {url}#MODEL")
    endpoint = {"url": url, "model": model} | {name: value[name] for name in value if name in Endpoint.model_fields}
    return {"kind": "remote" if scores_at(url) else "judge", "endpoint": endpoint} | {
        name: said for name, said in value.items() if name != "from" and name not in Endpoint.model_fields
    }


elsewhere = BeforeValidator(_made_elsewhere)
"""Of a union of rewards: `{from: ...}` is one of them."""
