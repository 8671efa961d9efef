"""What is known of a Base, whether it was trained here or taken from others."""

from __future__ import annotations

from typing import Literal

from triptych.pipeline.result import Result

Dtype = Literal["float32", "bfloat16"]


class Domain(Result):
    """How well a Base predicts the held-out text of one of the recipe's files.

    Attributes:
        name: of the file.
        tokens: that it was trained on of this file.
        before, after: bits per byte, as it was taken and as it is.
    """

    name: str
    tokens: int
    before: float
    after: float

    @property
    def forgotten(self) -> float:
        """Bits per byte by which it became worse."""
        return self.after - self.before


class BaseRecord(Result):
    """A Base: where it came from and how well it predicts held-out text.

    Attributes:
        source: "trained from scratch" or where it was taken from.
        source_kind, source_digest: of one that was taken; None of one that was trained here.
        source_dtype: what its weights were stored in, which a release keeps.
        changes: what was done to it to make it a plain folder.
        tuned: it came with a chat template, by which it is asked; one that came without is shown examples.
        tokens_seen: in its training, where that was here.
        bits_per_byte: on held-out text; None where the recipe names no text.
        domains: what training it further did to the text of each file.
        trained_further: one that was taken was trained here, and did not forget too much.
    """

    source: str
    source_kind: Literal["folder", "gguf", "hub"] | None = None
    source_digest: str | None = None
    source_dtype: Dtype = "float32"
    changes: tuple[str, ...] = ()
    tuned: bool = False
    parameters: int
    vocabulary: int
    tokens_seen: int | None
    bits_per_byte: float | None
    domains: tuple[Domain, ...] = ()
    trained_further: bool = False

    @property
    def revision(self) -> str | None:
        """The Hub's commit of one that was taken from there."""
        return self.source_digest if self.source_kind == "hub" else None

    @property
    def headline(self) -> str:
        """How well it predicts text."""
        if self.domains:
            changed = "; ".join(f"{one.name} {one.before:.3f} to {one.after:.3f}" for one in self.domains)
            return f"{changed} bits per byte"
        return "" if self.bits_per_byte is None else f"{self.bits_per_byte:.3f} bits per byte"
