"""What a recipe names on the network where the network does not answer."""

from __future__ import annotations

from collections.abc import Iterator

import yaml
from pydantic import BaseModel

from triptych.base.source import find
from triptych.configuration import Composed, is_flat
from triptych.data.remote import download, reach_hub
from triptych.data.source import CHOICE, Source, dataset_name, is_address
from triptych.errors import DataError, ModelError
from triptych.recipe import DataSource, RatingFeedback, Recipe, RewardBenchmark, ThumbFeedback


def out_of_reach(recipe: Recipe) -> str | None:
    """Which models and data this machine has no copy of and the Hub, which does not answer, cannot give; None if none.

    One message, with the override that names each once it was brought here. Where the Hub answers, whoever opens a name
    says what is wrong with it.
    """
    named = [(place, entry, source) for place, entry, source in sources_in(recipe)
             if dataset_name(source.file) or is_address(source.file)]
    taken = recipe.base.from_
    hub_model = taken.name if taken is not None and str(taken.path) == taken.name and not taken.path.exists() else None
    if not (named or hub_model) or reach_hub():
        return None
    lacking = {} if hub_model is None or _has_model(hub_model) else {"base.from=FOLDER": hub_model}
    lacking |= {f"'{place}={_brought(entry)}'": source.file for place, entry, source in named if not _has_rows(source)}
    if not lacking:
        return None
    lines = "".join(f"\n  {name}:  --set {override}" for override, name in lacking.items())
    return f"the Hub does not answer, and this machine has no copy of these; bring each here and name it:{lines}"


def sources_in(settings: object, place: str = "") -> Iterator[tuple[str, Composed, Source]]:
    """Every source of data in settings: where it is named, the entry, and what it means."""
    if isinstance(settings, DataSource):
        yield place, settings, settings.located
    elif isinstance(settings, RatingFeedback | ThumbFeedback | RewardBenchmark):
        yield place, settings, settings.source.located
    elif isinstance(settings, BaseModel):
        for name, field in type(settings).model_fields.items():
            inner = place if is_flat(field) else f"{place}.{field.alias or name}".lstrip(".")
            yield from sources_in(getattr(settings, name), inner)
    elif isinstance(settings, tuple):
        for number, entry in enumerate(settings):
            yield from sources_in(entry, f"{place}.{number}")


def _brought(entry: Composed) -> str:
    """The entry with a file in the place of what it names, as YAML in one line."""
    said = entry.model_dump(mode="json", by_alias=True, exclude_unset=True)
    said = {name: "FILE" if name in ("file", "ratings", "thumbs", "reward") else value for name, value in said.items()
            if name not in CHOICE}
    return yaml.safe_dump(said, default_flow_style=True, width=10_000, sort_keys=False).strip()


def _has_rows(source: Source) -> bool:
    try:
        download(source)
    except DataError:
        return False
    return True


def _has_model(name: str) -> bool:
    try:
        return bool(find(name))
    except ModelError:
        return False
