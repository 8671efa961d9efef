"""The command that asks people, one in a terminal or several on a page."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.app import app
from triptych.cli.arguments import RUNS, Overrides, RunsFolder
from triptych.cli.listening import listening
from triptych.cli.terminal import quote, say, show_error
from triptych.errors import AnsweredError, RecipeError, RunError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from triptych.people.questionnaire import Choice, Questionnaire
    from triptych.recipe import Recipe
    from triptych.records import Conversation, Question


@app.command()
def label(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe, or the folder of a gate --people.", show_default=False)
    ],
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="your login's", help="Who answers in the terminal."),
    ] = None,
    guideline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Text that says by what to decide; the recipe's before."),
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Serves a page on which several people may answer.")] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Asks nothing: tells what was answered, and how far people agree.")
    ] = False,
    host: Annotated[str, typer.Option(help="The address that the page listens at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 for any that is free.")] = 8377,
    runs: RunsFolder = RUNS,
) -> None:
    """Asks you which of two answers is better, or whether one is good, and adds what you say to the recipe's file.

    Where a gate waits for people (gate: {people: verdicts.jsonl}), its questions come first: the two answers are the
    champion's and the candidate's, and nobody is told which is which. Other questions are what the run's champion wrote
    (feedback: [{people: labels.jsonl}]); those that the reward model is least sure of come first. Where the method
    learns from thumbs (KTO), or the recipe says ask_for: thumbs, each shows one answer. With --page several people
    answer in their browsers, each another question first, until Ctrl-C; whoever has the printed address may answer.
    The share of the questions that the recipe names as overlap is asked of several people: at the end you are told how
    far they agree.

    Example: [bold]triptych label recipe.yaml --page[/bold]
    """
    if recipe.is_dir():
        asked = _asked_by_gate(recipe)
    else:
        from triptych.recipe import load

        loaded = load(recipe, overrides or ())
        asked = _asked(loaded, recipe, runs / loaded.name)
    if guideline is not None:
        from triptych.people.questionnaire import read_guideline

        text = read_guideline(guideline)
        for source in asked:
            source.guideline = text
    if page and not agreement:
        _serve(asked, host, port)
    elif not agreement:
        annotator = _named(name)
        say(f"you answer as {annotator}")
        for source in asked:
            if not _interview(source, annotator):
                break
    if not page or agreement:
        _tell_agreement(asked)


def _tell_agreement(asked: Sequence[Questionnaire[Any]]) -> None:
    """What was said to the questions that are asked now."""
    for source in asked:
        say(f"{source.file}: {source.reliability.sentence}")


def _named(name: str | None) -> str:
    """Who answers: a name as it is written down.

    Raises:
        RunError: there is none.
    """
    import getpass

    from triptych.display import one_line

    try:
        annotator = one_line(getpass.getuser() if name is None else name)
    except (KeyError, OSError):
        annotator = ""
    if not 0 < len(annotator) <= 64:
        raise RunError("label writes a name beside each answer, of 1 to 64 characters: give --name NAME")
    return annotator


def _asked(loaded: Recipe, recipe: Path, folder: Path) -> list[Questionnaire[Any]]:
    """Where the recipe has people answer, the gate first.

    Raises:
        RecipeError: nowhere.
        RunError: the run has no questions yet.
    """
    from triptych.people.attendance import GATE_QUESTIONS
    from triptych.people.questions import FILE, FORMS
    from triptych.people.verdicts import Panel

    if loaded.people is None and loaded.gate.people is None:
        raise RecipeError(
            "label needs a file that it may add to: feedback: [{people: labels.jsonl}] or "
            "gate: {people: verdicts.jsonl}"
        )
    if not any((folder / name).exists() for name in (FILE, GATE_QUESTIONS)):
        raise RunError(f"{folder} has no questions yet: triptych run or watch {recipe} has the model write its answers")
    asked: list[Questionnaire[Any]] = []
    if loaded.gate.people is not None:
        asked.append(Panel(folder / GATE_QUESTIONS, loaded.gate.people.path, loaded.gate.annotation))
    if loaded.people is not None and loaded.people_give is not None:
        asked.append(FORMS[loaded.people_give](folder / FILE, loaded.people.path, loaded.annotation))
    return asked


def _asked_by_gate(folder: Path) -> list[Questionnaire[Any]]:
    """What a gate without a recipe asks.

    Raises:
        RunError: there is none, or it has decided.
    """
    from triptych.api import DECISION, VERDICTS
    from triptych.evaluate.answers import QUESTIONS
    from triptych.people.verdicts import Panel

    if not (folder / QUESTIONS).exists():
        raise RunError(f"{folder} is neither a recipe nor the folder of a gate: it has no {QUESTIONS}")
    if (folder / DECISION).exists():
        raise RunError(f"{folder} is decided, and no verdict changes it: see {DECISION}")
    return [Panel(folder / QUESTIONS, folder / VERDICTS)]


def _interview(asked: Questionnaire[Any], annotator: str) -> bool:
    """Asks somebody one question after the other; whether the last was reached."""
    from triptych.people.questionnaire import SKIP, UNDO, Choice

    stop = Choice("stop", "q", "Stop")
    choices = {choice.key: choice for choice in (*asked.choices, SKIP, stop, UNDO)}
    legend = "  ".join(f"{choice.key} {choice.label}" for choice in choices.values())
    said = SKIP
    for note in asked.notes:
        say(note)
    if asked.guideline:
        quote(asked.guideline)
    waiting = list(asked.open_to(annotator).values())
    given: list[int] = []
    place = 0
    while place < len(waiting):
        question = waiting[place]
        say()
        for turn in question.prompt.messages:
            quote((f"{turn.role}: {turn.shown}", "dim"))
        for number, answer in enumerate(question.answers, start=1):
            quote((f"{number}  " if len(question.answers) > 1 else "", "bold"), answer.strip() or "(nothing)")
        say((asked.title, "bold"))
        key = ""
        while key not in choices:
            key = typer.prompt(legend).strip().lower()
        said = choices[key]
        if said == stop:
            break
        if said == UNDO:
            if given:
                place = given.pop()
                asked.take_back(waiting[place], annotator)
            else:
                say("there is no answer that you gave now and could take back")
            continue
        if said != SKIP and _added(asked, question, said, annotator):
            given.append(place)
        place += 1
    else:
        say("there is no open question left")
    say(f"{len(given)} answer{'' if len(given) == 1 else 's'} added to {asked.file}")
    return said != stop


def _added(asked: Questionnaire[Any], question: Question | Conversation, choice: Choice, annotator: str) -> bool:
    """Adds an answer, again until there is room for it; False where somebody was faster."""
    while True:
        try:
            cut = asked.add(question, choice.name, annotator)
        except AnsweredError as error:
            say(str(error))
            return False
        except OSError as error:
            show_error(f"{asked.file}: {error.strerror}; what you said is kept")
            typer.prompt("Enter to try again, Ctrl-C to give it up", default="", show_default=False)
        else:
            if cut:
                say(f"{asked.file} ended in a line that was not whole; set aside: {cut}")
            return True


def _serve(asked: Sequence[Questionnaire[Any]], host: str, port: int) -> None:
    """The page, until Ctrl-C."""
    from triptych.people.page import serve

    key = secrets.token_urlsafe(16)
    with listening(host, port) as (socket, address):
        say(f"{address}/#key={key}")
        say("answers are added to " + " and ".join(str(source.file) for source in asked) + "; Ctrl-C ends it")
        for note in (note for source in asked for note in source.notes):
            say(note)
        try:
            serve(asked, key, tell=say).run(sockets=[socket])
        finally:
            _tell_agreement(asked)
