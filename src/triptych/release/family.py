"""Put the models together as one family: files, cards, lineage, manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from triptych.audit.record import AUDIT, AuditRecord
from triptych.configuration import reason
from triptych.engine.adapter_folder import rename_trunk
from triptych.engine.device import hardware
from triptych.engine.inspection import ADAPTER, inspect, trunk_of
from triptych.engine.merging import merge
from triptych.engine.models import TOKENIZER_FILES, cast, mend
from triptych.engine.sampling import Sampling
from triptych.errors import ReleaseError
from triptych.records import Comparison, Message, Prompt, turns
from triptych.release import card, examples
from triptych.release.lineage import REQUIRED, ROLES, Lineage, ReleaseForm, RewardExample, Role
from triptych.release.signature import Signing, sign
from triptych.release.verification import FORMAT, DataEntry, Manifest, ModelEntry, ParentEntry, listing, seal
from triptych.report.summary import Summary

MODEL_FILES = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    ADAPTER,
    *TOKENIZER_FILES,
)
"""What of a model's folder is released: what other programs read, nothing of how a stage worked."""

TRUNK = "../base"
"""How released adapters name the Base: from a role's folder."""

EXAMPLES = "examples.jsonl"
DESCRIBING = ("reward.json", "template.jinja")
CODE = ("functions/*.py",)
"""What describes a reward that is more, or less, than one model, and its own functions."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the cards show the released models on.

    Attributes:
        opening: the beginning of a text that the Base has not seen.
        prompts: of the test, which Instruct answers.
        comparisons: whose answers Reward scores; all lie beside it, to compare with.
        held_out: the comparisons trained nothing.
    """

    opening: str | None = None
    prompts: Sequence[Prompt] = ()
    comparisons: Sequence[Comparison] = ()
    held_out: bool = True


def assemble(
    folder: Path,
    *,
    name: str,
    version: str,
    license: str,
    models: Mapping[Role, Path],
    lineage: Mapping[Role, Lineage],
    summary: Summary,
    recipe: str,
    shown: Shown | None = None,
    language: str = "en",
    datasets: Sequence[str] = (),
    decoding: Sampling | None = None,
    dtype: torch.dtype = torch.float32,
    form: ReleaseForm = "merged",
    signing: Signing | None = None,
    prompt: Path | None = None,
    tuned: bool | None = None,
) -> None:
    """Write the release into `folder`; the same models and numbers give the same bytes.

    Args:
        folder: made if it is missing; must be empty.
        name: the family's.
        version: shared by the models.
        license: a licence by its name on the Hub, such as `apache-2.0`.
        models: the folder of each role's model; for a reward that is not one model the folder with its `reward.json`;
            no reward where the family learnt without one.
        lineage: what each was made from.
        summary: the run's; the cards quote its scores, and its duration in a few words, as equal runs have in common.
        recipe: digest of the resolved recipe.
        shown: what the cards show the models on.
        language: of the text, as the Hub names it.
        datasets: of the Hub, by name, that the family was trained on.
        decoding: of Instruct, at which it was measured; of the Base the same number of tokens, without sampling.
        dtype: what the weights are released in; they were trained in float32.
        form: of models that are adapters; these stay in float32.
        signing: how the whole is signed, last; two signatures of equal bytes differ.
        prompt: a file of turns that Instruct answers better behind, which is put beside it.
        tuned: whether the Base came with a chat template by which it is asked; by default it is looked up in what was
            measured of it.

    Raises:
        ReleaseError: if a role is missing, the folder is not empty, the models do not share one tokenizer, adapters
            are to be released of another trunk than the Base, or it cannot be signed.
        ModelError: if a model's folder cannot be used safely.
    """
    roles = [role for role in ROLES if role in REQUIRED or role in models or role in lineage]
    for given in (models, lineage):
        if absent := [role for role in roles if role not in given]:
            raise ReleaseError(f"a family needs {', '.join(roles)}; there is no {', '.join(absent)}")
    if folder.exists() and any(folder.iterdir()):
        raise ReleaseError(f"{folder}: a release is written into an empty folder, and this one is not")
    folders = [place for role in roles for place in _models_in(models[role])]
    for place in folders:
        inspect(place)
    _check_shared(folders)

    for role in roles:
        target = folder / role
        target.mkdir(parents=True)
        for source in _described_files(models[role]):
            _copy(source, target / source.relative_to(models[role]))
        for source in _models_in(models[role]):
            _put(source, target / source.relative_to(models[role]), models["base"], form, dtype)
        if role != "reward" and decoding:
            deployed = decoding if role == "instruct" else replace(decoding, temperature=0.0)
            _deploy(target / "generation_config.json", deployed)
    if prompt is not None:
        _copy(prompt, folder / "instruct" / prompt.name)
    shown = shown or Shown()
    described: dict[str, Any] | None = None
    scale: dict[str, Any] | None = None
    scored: tuple[RewardExample, ...] = ()
    if (reward := models.get("reward")) is not None and (described := _described(reward)) is None:
        scale = json.loads((reward / "config.json").read_bytes()).get("reward_scale")
        scored = examples.scores(folder / "reward", shown.comparisons)
    family = card.ReleasedFamily(
        name, version, license, language, recipe, lineage, summary, scored, described, scale,
        answers=examples.answers(folder / "instruct", shown.prompts),
        continuation=examples.continuation(folder / "base", shown.opening) if shown.opening else None,
        opening=shown.opening, decoding=decoding, datasets=tuple(datasets), hardware=hardware(),
        held_out=shown.held_out, adapted=tuple(role for role in roles if any((folder / role).rglob(ADAPTER))),
        behind=prompt is not None, tuned=tuned,
    )
    if family.audit is not None:
        record = AuditRecord.model_validate({name: getattr(family.audit, name) for name in AuditRecord.model_fields})
        _write(folder / "reward" / AUDIT, record.model_dump_json(indent=1) + "\n")
    for role in roles:
        _write(folder / role / "README.md", card.model_card(role, family))
    if scored:
        _write(folder / "reward" / EXAMPLES, "".join(_example(example) for example in scored))
    _write(folder / "README.md", card.family_card(family))
    seal(folder, _manifest(folder, family))
    if signing is not None:
        sign(folder, signing)


def _deploy(path: Path, decoding: Sampling) -> None:
    """Writes how the model is decoded; of what its folder said only the special tokens stay, an end token each."""
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    kept = {name: value for name, value in settings.items()
            if name.endswith("_token_id") or name == "transformers_version"}
    _write(path, json.dumps(kept | decoding.settings, indent=2, sort_keys=True) + "\n")


def _described(folder: Path) -> dict[str, Any] | None:
    """What `reward.json` says of a reward that is not just one model; None of a model."""
    path = folder / "reward.json"
    content: dict[str, Any] | None = json.loads(path.read_bytes()) if path.is_file() else None
    return content


def _models_in(folder: Path) -> list[Path]:
    """The folder itself where it is a model, else the models that a reward is made of: maybe none.

    One that lies beside a `reward.json` was taken with another tokenizer, and is not released.
    """
    if _described(folder) is None:
        return [folder]
    return sorted(
        path.parent for path in folder.rglob("config.json") if _described(path.parents[1]) is None
    )


def _described_files(folder: Path) -> list[Path]:
    """The files that describe a reward that is not just one model."""
    if _described(folder) is None:
        return []
    files = [path for name in DESCRIBING for path in folder.rglob(name)]
    return sorted({*files, *(path for pattern in CODE for path in folder.rglob(pattern))})


def _put(source: Path, target: Path, base: Path, form: ReleaseForm, dtype: torch.dtype) -> None:
    """A model's folder as it is released."""
    trunk = trunk_of(source)
    if trunk != source and form == "merged":
        merge(source, target, dtype)
        return
    if trunk != source and trunk != base.resolve():
        raise ReleaseError(f"{source}: its adapters are of {trunk}, and not of the Base; release it merged")
    for pattern in MODEL_FILES:
        for path in source.glob(pattern):
            _copy(path, target / path.name)
    if trunk != source:
        rename_trunk(target, TRUNK)
        mend(target / "config.json", {"dtype": str(dtype).removeprefix("torch.")})
    elif dtype != torch.float32:
        cast(target, dtype)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _check_shared(models: Sequence[Path]) -> None:
    for name in TOKENIZER_FILES:
        contents = {(model / name).read_bytes() if (model / name).is_file() else None for model in models}
        if len(contents) > 1:
            raise ReleaseError(f"{name}: differs between the models, and a family shares one tokenizer")


def _example(example: RewardExample) -> str:
    messages = turns((*example.prompt, Message("assistant", example.answer)))
    return json.dumps({"messages": messages, "score": round(example.score, 6)}, ensure_ascii=False) + "\n"


def _manifest(folder: Path, family: card.ReleasedFamily) -> Manifest:
    entries: dict[Role, ModelEntry] = {}
    for role in family.roles:
        lineage = family.lineage[role]
        entries[role] = ModelEntry(
            parents=[ParentEntry(name=parent.name, digest=parent.digest) for parent in lineage.parents],
            data=[DataEntry(name=file.name, sha256=file.sha256, rows=file.rows) for file in lineage.data],
            fingerprint=lineage.fingerprint,
        )
    try:
        return Manifest(
            format=FORMAT, name=family.name, version=family.version, license=family.license, recipe=family.recipe,
            models=entries, files=listing(folder),
        )
    except ValidationError as error:  # the name of a reward's own function, say
        raise ReleaseError(f"{folder}: " + reason(error.errors()[0])) from None


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # the same line ends on every system
