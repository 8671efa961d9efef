"""Near duplicates: what shares most of its neighbouring words is found, counted, and left out if that is asked for."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from triptych.data.folder import DataFolder
from triptych.data.near import ALIKE, NearDuplicates, apart, apart_from, asked, pairs_of
from triptych.dataset.preparation import DataPreparation, Prepared, left_out, prepare_data
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Conversation, Message, Prompt

LONG = "Write a short poem about the old lighthouse that stands at the very end of the long stone pier"


@pytest.mark.parametrize(("text", "near"), [
    (LONG, True),
    (LONG.upper().replace(" ", ",  ") + "!", True),
    (LONG.replace("pier", "bridge"), True),
    (f"Please: {LONG}", True),
    (LONG.replace("old", "new").replace("stone", "glass").replace("short", "long"), False),
    (" ".join(reversed(LONG.split())), False),
    ("Write a short poem", False),
    ("", False),
])
def test_most_neighbouring_words_in_common(text: str, near: bool) -> None:
    assert (text in NearDuplicates([LONG])) == near
    assert "word" in NearDuplicates(["Word."])
    assert "word" not in NearDuplicates(["Word two"])


def test_hardly_a_near_duplicate_is_missed_among_many_and_none_is_made_up() -> None:
    """Of 600 texts and changed ones of them; a few may be missed by chance, 2% here at the most."""
    draw = random.Random(0)
    vocabulary = [f"word{i}" for i in range(400)]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(8, 40))) for _ in range(600)]
    known = NearDuplicates(texts)
    missed = 0
    for text in texts:
        words = text.split()
        for place in draw.sample(range(len(words)), draw.randint(0, 3)):
            words[place] = draw.choice(vocabulary)
        mine, exact = pairs_of(" ".join(words)), False
        for other in texts:
            theirs = pairs_of(other)
            exact = exact or len(mine & theirs) >= ALIKE * len(mine | theirs)
        found = " ".join(words) in known
        assert exact or not found
        missed += exact and not found
    assert missed <= 0.02 * len(texts)


def test_rows_apart_from_others_and_from_each_other() -> None:
    prompt, changed, other = Prompt.of(LONG), Prompt.of(LONG.replace("old", "grey")), Prompt.of("Say hello")
    assert apart_from([changed, other], NearDuplicates([LONG])) == ([other], [changed])
    assert apart([prompt, other, changed]) == ([prompt, other], [changed])
    long = " ".join(f"answer{i}" for i in range(40))
    first, second = Conversation(prompt, "yes"), Conversation(changed, long)
    assert apart([first, second]) == ([first, second], []), "the answers differ"
    turns = Prompt((Message("user", "a b"), Message("assistant", "c"), Message("user", "d")))
    assert asked(turns) == "a b\nc\nd"


def prepared(folder: Path, **settings: Any) -> tuple[Prepared, DataFolder]:
    words = [" ".join(f"w{number}x{place}" for place in range(12)) for number in range(60)]
    rows = [{"prompt": text, "completion": f"answer to {text}"} for text in words]
    rows += [{"prompt": f"{text} please", "completion": f"answer to {text}"} for text in words]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataPreparation.model_validate({
        "conversations": [{"file": "rows"}], "test": 8, "gate": 8, "validation": 8, **settings})
    (folder / "out").mkdir()
    context = StageContext(folder / "out", folder, Silent(), 1, 60.0)
    return prepare_data(context, config, {"rows": folder / "rows.jsonl"}), DataFolder(folder / "out")


@pytest.mark.parametrize("rule", ["report", "leave_out"])
def test_rows_near_a_held_out_prompt_are_told_and_left_out_if_asked(rule: str, tmp_path: Path) -> None:
    made, data = prepared(tmp_path, near_duplicates=rule)
    measured = [row for split in ("test", "gate", "validation") for row in data.prompts(split).read()]
    learnt = [*data.demonstrations("train").read(), *data.demonstrations("heldout").read()]
    improve = data.prompts("improve").read()
    close = [len(apart_from(rows, NearDuplicates(map(asked, measured)))[1]) for rows in (learnt, improve)]
    assert made.near_held_out > 30
    assert made.near_within > 30
    lines = [line for line in left_out(made) if "nearly repeat" in line]
    assert len(lines) == 2
    assert "rows:" in lines[0]
    if rule == "report":
        assert sum(close) == made.near_held_out
        assert all("are kept; near_duplicates: leave_out" in line for line in lines)
    else:
        assert close == [0, 0]
        assert not apart(improve)[1]
        assert not apart(learnt)[1]
        assert all("and are left out (" in line for line in lines)
