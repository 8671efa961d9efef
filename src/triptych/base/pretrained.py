"""A Base that others trained, as a stage: taken, checked, and measured on held-out text if there is any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from triptych.base.record import BaseRecord
from triptych.base.source import Quantization, take
from triptych.configuration import Config
from triptych.data.folder import DataFolder
from triptych.data.template import Argument
from triptych.engine import attention
from triptych.engine.device import give_back
from triptych.engine.forward import packs
from triptych.engine.models import load_config, load_policy, load_tokenizer, reward_fault
from triptych.engine.parity import as_in_transformers, verify_parity
from triptych.engine.perplexity import bits_per_byte
from triptych.errors import ModelError
from triptych.pipeline.stage import StageContext, alone, reads
from triptych.records import split_reasoning
from triptych.storage import Folder

NO_REWARD = (
    "no reward model can be trained on it, so take rules or a language model as reward and gate.judge, or another Base"
)

UNPACKED = (
    "{} cannot compute packed rows, so that its sequences are computed as padded batches and its answers with "
    "transformers' cache: the same results, in more time and memory"
)


class BaseImport(Config):
    """Which Base is taken.

    Attributes:
        name: a folder, a .gguf file or a Hub name, as the recipe gives it.
        chat_template: "chatml" or a .jinja file, or the model's own.
        template: arguments of the chat template, such as `enable_thinking`, by name; they become its defaults.
        tokens: tokens of the model that are such in the texts of messages too, as `<think>`.
        quantization: its layers' matrices are rounded to what NF4 holds, see :mod:`triptych.engine.nf4`.
        context: tokens in a piece of text when bits per byte are measured.
        measured: whether they are; where it is trained further they are measured there.
    """

    name: str
    chat_template: str | None = None
    template: dict[str, Argument] = Field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    quantization: Quantization | None = None
    context: int = 1024
    measured: bool = True


def require_reward_head(base: Folder, name: str) -> None:
    """Refuses a Base on which no reward model can be trained, before what is trained on it.

    Args:
        name: as the recipe has it.

    Raises:
        ModelError: transformers has no reward model of its architecture.
    """
    if fault := reward_fault(load_config(base / "model")):
        raise ModelError(f"{name}: {fault}; {NO_REWARD}")


@alone
@reads(data=("text_heldout", "demonstrations"))
def import_base(
    context: StageContext, config: BaseImport, data: Folder, sources: Mapping[str, str | Path]
) -> BaseRecord:
    """Writes the Base as a plain folder, and measures it on `data/text_heldout.jsonl`."""
    template = config.chat_template and str(sources.get(config.chat_template, config.chat_template))
    source = take(
        str(sources[config.name]), context.output / "model", chat_template=template, arguments=config.template,
        tokens=config.tokens, reasoning=has_reasoning(DataFolder(data)), quantization=config.quantization,
    )
    for change in source.changes:
        context.progress.say(change)
    give_back()  # what was read of the source
    model: Any = load_policy(context.output / "model", attention=attention.NAME, frozen=True)
    try:
        verify_parity(model, as_in_transformers(model))
    except ModelError as error:
        raise ModelError(f"{config.name}: {error}") from error
    if not packs(model):
        context.progress.say(UNPACKED.format(type(model).__name__))
    tokenizer = load_tokenizer(context.output / "model")
    bits = None
    if config.measured and DataFolder(data).text("heldout").exists:
        bits = bits_per_byte(model, tokenizer, DataFolder(data).text("heldout").read(), config.context)
    return BaseRecord(
        source=source.origin,
        source_kind=source.kind,
        source_digest=source.digest,
        source_dtype=source.dtype,
        changes=tuple(source.changes),
        tuned=source.tuned,
        parameters=source.parameters,
        vocabulary=len(tokenizer),
        tokens_seen=None,
        bits_per_byte=bits,
    )


def has_reasoning(data: DataFolder) -> bool:
    """Whether some of the answers to learn begin with reasoning, so that a model is to begin with it too."""
    rows = data.demonstrations("train").read_any()
    return any(split_reasoning(conversation.answer)[0] is not None for conversation in rows)
