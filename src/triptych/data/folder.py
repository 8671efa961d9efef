"""The files of a folder of data, by what is in them: the one place that spells their names.

=====================================  =================================================================================
file                                   what it holds
=====================================  =================================================================================
`text.jsonl`                           documents on which a Base is trained
`text_heldout.jsonl`                   those on which it is measured
`demonstrations.jsonl`                 conversations on which Instruct is trained
`demonstrations_heldout.jsonl`         those on which it is measured
`examples.jsonl`                       worked examples, which are shown to the Base
`comparisons_train.jsonl`              what trains the reward model
`comparisons_heldout.jsonl`            what it is audited on
`comparisons_heldout_new.jsonl`        those of them that the last round added
`comparisons_judge.jsonl`              what trains the gate's own reward model and nothing else
`comparisons_judge_heldout.jsonl`      what that one is audited on
`ratings_*.jsonl`                      ratings, in the same splits as comparisons
`thumbs.jsonl`                         answers that were liked or not, what KTO learns from
`thumbs_heldout.jsonl`                 those that it is watched on, where no reward watches
`prompts_improve.jsonl`                what the policy is improved on
`prompts_feedback.jsonl`               what is asked for comparisons while a run goes on
`prompts_validation.jsonl`             what improvement is watched on
`prompts_gate.jsonl`                   where candidate and champion are compared
`prompts_test.jsonl`                   where every model is measured at the end
=====================================  =================================================================================

The stage `data` writes them, and each round's `feedback` and `thumbs` the comparisons and thumbs that it adds up. No
folder has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from triptych.data.files import READERS, has_lines, read_conversations, read_documents_of_domains, write
from triptych.records import Comparison, Conversation, Document, Prompt, Rating, Record, Thumb
from triptych.storage import Folder

R = TypeVar("R", bound=Record)

Split = Literal["train", "heldout"]
TrainedOn = Literal["train", "judge"]
"""The comparisons and ratings that train the reward model, and those that train the gate's own."""
AuditedOn = Literal["heldout", "judge_heldout"]
PromptSplit = Literal["improve", "feedback", "validation", "gate", "test"]

HELD_OUT: Mapping[TrainedOn, AuditedOn] = {"train": "heldout", "judge": "judge_heldout"}
"""For the split that trains a reward model the one that it is audited on."""
TRAINED: Mapping[AuditedOn, TrainedOn] = {audited: trained for trained, audited in HELD_OUT.items()}


@dataclass(frozen=True, slots=True)
class RecordFile(Generic[R]):
    """A JSON Lines file of records of one type."""

    path: Path
    reader: Callable[[Path], list[R]]

    @property
    def exists(self) -> bool:
        """Whether the folder has it."""
        return self.path.exists()

    def read(self) -> list[R]:
        """Its records.

        Raises:
            DataError: it is not there, is empty, or a row is wrong.
        """
        return self.reader(self.path)

    def read_any(self) -> list[R]:
        """Its records; none where it is empty or not there.

        Raises:
            DataError: a row is wrong.
        """
        return self.read() if has_lines(self.path) else []

    def write(self, records: Iterable[R]) -> None:
        """Writes records that `read` turns back into equal ones."""
        write(self.path, records)


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder of data."""

    path: Folder

    def text(self, split: Split) -> RecordFile[Document]:
        """Documents."""
        return self.named("text" + _SUFFIX[split])

    def demonstrations(self, split: Split) -> RecordFile[Conversation]:
        """Conversations that are learnt."""
        return self.named("demonstrations" + _SUFFIX[split])

    @property
    def examples(self) -> RecordFile[Conversation]:
        """Worked examples."""
        return self.named("examples")

    def comparisons(self, split: TrainedOn | AuditedOn) -> RecordFile[Comparison]:
        """Comparisons of two answers."""
        return self.named(f"comparisons_{split}")

    def crossfitted(self, split: TrainedOn) -> bool:
        """Whether comparisons train and none is held out: they are audited fold by fold, see `folds`."""
        return has_lines(self.comparisons(split).path) and not has_lines(self.comparisons(HELD_OUT[split]).path)

    @property
    def new_comparisons(self) -> RecordFile[Comparison]:
        """Those held out that the last round added."""
        return self.named("comparisons_heldout_new")

    def ratings(self, split: TrainedOn | AuditedOn) -> RecordFile[Rating]:
        """Rated answers."""
        return self.named(f"ratings_{split}")

    @property
    def thumbs(self) -> RecordFile[Thumb]:
        """Answers that were liked or not."""
        return self.named("thumbs")

    @property
    def thumbs_heldout(self) -> RecordFile[Thumb]:
        """Those on which learning from the others is watched."""
        return self.named("thumbs_heldout")

    def prompts(self, split: PromptSplit) -> RecordFile[Prompt]:
        """Prompts, nobody's answer beside them."""
        return self.named(f"prompts_{split}")

    def named(self, name: str) -> RecordFile[Any]:
        """The file of a name without its ending, "prompts_gate"."""
        return RecordFile(self.path / f"{name}.jsonl", _READERS[name.partition("_")[0]])


_SUFFIX: Mapping[Split, str] = {"train": "", "heldout": "_heldout"}
_READERS: Mapping[str, Callable[[Path], list[Any]]] = {
    **READERS, "text": read_documents_of_domains, "demonstrations": read_conversations, "examples": read_conversations,
}
