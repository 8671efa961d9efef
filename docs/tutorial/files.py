"""Writes the four files of the tutorial, which stand for files of your own: `python files.py FOLDER`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

TOOLS = [
    "saw", "drill", "ladder", "hammer", "spade", "rake", "shovel", "wrench", "plane", "chisel", "clamp", "vice",
    "level", "mower", "trolley", "sander", "router", "torch", "pump", "lathe", "hoe", "sickle", "barrow", "grinder",
    "stapler", "punch", "crowbar", "mallet", "file", "sprayer", "winch", "jigsaw", "bucket", "rope", "tent", "bench",
    "jack", "heater", "fan", "mixer", "roller", "brush", "broom", "hose", "fork", "trowel", "cart", "drum",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
QUESTIONS = (
    "May I have a {tool} on {day}?", "Is there a {tool} for me on {day}?", "I need a {tool} on {day}.",
    "Can I borrow a {tool} on {day}?", "Do you lend a {tool} on {day}?", "Could I get a {tool} on {day}?",
    "Have you got a {tool} on {day}?", "Please give me a {tool} on {day}.",
)
ANSWER = "A {tool} on {day}: yes, take it."
CURT = "Yes, of course."


def main(folder: Path) -> None:
    """Writes text, conversations, preferences and prompts."""
    draw = random.Random(1)
    asked = [(question, tool, day) for question in QUESTIONS for tool in TOOLS for day in DAYS]
    draw.shuffle(asked)
    folder.mkdir(parents=True, exist_ok=True)

    sentences = [
        draw.choice((question, f"Anna took a {{tool}} on {{day}}. {ANSWER}", "We have a {tool}. It is here on {day}."))
        .format(tool=tool, day=day) + " " + ANSWER.format(tool=tool, day=day)
        for question, tool, day in (draw.choice(asked) for _ in range(8_000))
    ]
    (folder / "text.txt").write_text("\n\n".join(sentences) + "\n", encoding="utf-8")

    # People who are in a hurry wrote most of these.
    write(folder / "answers.jsonl", (
        {"prompt": question.format(tool=tool, day=day),
         "completion": CURT if draw.random() < 0.7 else ANSWER.format(tool=tool, day=day)}
        for question, tool, day in asked[:600]
    ))
    write(folder / "preferences.jsonl", (
        {"prompt": question.format(tool=tool, day=day), "chosen": ANSWER.format(tool=tool, day=day),
         "rejected": worse(tool, day, draw)}
        for question, tool, day in asked[:1_500]
    ))
    write(folder / "questions.jsonl", (
        {"prompt": question.format(tool=tool, day=day)} for question, tool, day in asked[1_500:]
    ))


def worse(tool: str, day: str, draw: random.Random) -> str:
    """An answer that says too little, or names another tool."""
    if draw.random() < 0.25:
        return CURT
    return ANSWER.format(tool=draw.choice([other for other in TOOLS if other != tool]), day=day)


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """One row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
