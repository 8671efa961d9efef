"""The storybook as the cycle's data: every file that a user would otherwise bring.

No prompt is in two files: what improves, what is asked for feedback, and what proves are disjoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from triptych.configuration import Config
from triptych.data.folder import DataFolder
from triptych.data.separation import require_apart
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, alone
from triptych.records import Conversation, Prompt
from triptych.storybook.demonstrations import demonstrations, exemplary
from triptych.storybook.tasks import prompts
from triptych.storybook.text import documents


class Storybook(Config):
    """How much of the world is written.

    Attributes:
        documents: of plain text for pretraining; a twentieth more is held out.
        demonstrations: conversations of mixed quality for fine-tuning.
        feedback_prompts, improve_prompts: what is asked for comparisons, and in improvement.
        validation_prompts: watched during improvement.
        gate_prompts: on which candidate and champion are compared; each round takes `gate.prompts` new ones.
        test_prompts: on which every model is measured at the end.
    """

    documents: int = Field(default=20_000, ge=20)
    demonstrations: int = Field(default=4000, ge=20)
    feedback_prompts: int = Field(default=4000, ge=10)
    improve_prompts: int = Field(default=4000, ge=10)
    validation_prompts: int = Field(default=96, ge=8)
    gate_prompts: int = Field(default=600, ge=10)
    test_prompts: int = Field(default=400, ge=10)


class WorldWritten(Result):
    """How much was written: rows of each file."""

    documents: int
    test: int
    gate: int
    validation: int
    improve: int
    feedback: int
    demonstrations: int
    demonstrations_heldout: int
    examples: int


@alone
def write_world(context: StageContext, config: Storybook) -> WorldWritten:
    """Writes the world's files."""
    text = documents(context.seed, config.documents + config.documents // 20)
    output = DataFolder(context.output)
    output.text("train").write(text[: config.documents])
    output.text("heldout").write(text[config.documents :])
    sizes = {
        "test": config.test_prompts,
        "gate": config.gate_prompts,
        "validation": config.validation_prompts,
        "improve": config.improve_prompts,
        "feedback": config.feedback_prompts,
        "demonstrations": config.demonstrations,
        "demonstrations_heldout": max(20, config.demonstrations // 20),
        "examples": 12,
    }
    asked = prompts(context.seed, sum(sizes.values()))
    parts: dict[str, Sequence[Prompt | Conversation]] = {}
    for name, size in sizes.items():
        part, asked = asked[:size], asked[size:]
        if name.startswith("demonstrations"):
            parts[name] = demonstrations(part, context.seed)
        elif name == "examples":
            parts[name] = [Conversation(prompt, exemplary(prompt, context.seed)) for prompt in part]
        else:
            parts[f"prompts_{name}"] = part
    require_apart(parts)
    for name, records in parts.items():
        output.named(name).write(records)
    return WorldWritten(
        documents=len(text), test=sizes["test"], gate=sizes["gate"], validation=sizes["validation"],
        improve=sizes["improve"], feedback=sizes["feedback"], demonstrations=sizes["demonstrations"],
        demonstrations_heldout=sizes["demonstrations_heldout"], examples=sizes["examples"],
    )
