"""The command that serves a release over HTTP."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.app import app
from triptych.cli.arguments import (
    Allowed,
    AllowEndpoint,
    AllowFunctions,
    AllowKey,
    AllowModel,
    AllowTemplate,
    find_model,
    find_release,
    name_of,
)
from triptych.cli.listening import listening
from triptych.cli.terminal import say
from triptych.errors import RewardError, RunError

if TYPE_CHECKING:
    from triptych.server.served import ServedFamily, ServedModel, ServedReward

KEY = "TRIPTYCH_KEY"


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A release, a run, or a model's folder.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="The address that it listens at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 for any that is free.")] = 8000,
    context: Annotated[int, typer.Option(min=16, help="Tokens of a prompt and its answer.")] = 2048,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Answers decoded together; by default as many as fit into 2 GiB.", show_default=False),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; further requests get status 429.")] = 256,
    thumbs: Annotated[
        Path | None,
        typer.Option(help="The file into which the page's thumbs go; a recipe may learn from it.", show_default=False),
    ] = None,
    key: Annotated[
        bool, typer.Option("--key", help=f"Asks for a key, also on this machine: that of {KEY}, or a new one.")
    ] = False,
    allow_endpoint: AllowEndpoint = None,
    allow_key: AllowKey = None,
    allow_functions: AllowFunctions = False,
    allow_template: AllowTemplate = False,
    allow_model: AllowModel = None,
) -> None:
    """Serves a release: OpenAI's interface for its models, scores for its reward, and a page to chat with them.

    Models answer at /v1/chat/completions and /v1/completions, the reward at /v1/score, /classify, /pooling and
    /get_reward; the page is at /. Whoever reaches another address than this machine's own must send a key. Ctrl-C lets
    the answers under way end.

    Example: [bold]triptych serve runs/quickstart --thumbs thumbs.jsonl[/bold]
    """
    allowed = Allowed(allow_endpoint, allow_key, allow_functions, allow_template, allow_model)
    secret = _secret(host, key)
    with listening(host, port) as (socket, address):
        family = _family(model, allowed, context, slots)
        family.thumbs = thumbs
        from triptych.server.application import serve as serving

        for served in family.models.values():
            rows, tokens = served.batch.cache.slots.rows, served.batch.context
            say(f"{served.name}: {rows} answers at a time, of {tokens} tokens with their prompts")
        say(f"{address}/" + (f"#key={secret}" if secret else "") + "; Ctrl-C ends it")
        serving(family, secret, queue).run(sockets=[socket])


def _secret(host: str, wanted: bool) -> str | None:
    """The key; None where only this machine is listened to and none is wanted.

    Raises:
        RunError: the environment's is no key.
    """
    given = os.environ.get(KEY, "")
    if given and not (given.isascii() and given.isprintable() and " " not in given):
        raise RunError(f"the environment variable {KEY} holds what no header can: set another key")
    if wanted or host not in ("127.0.0.1", "localhost", "::1"):
        return given or secrets.token_urlsafe(16)
    return given or None


def _family(name: str, allowed: Allowed, context: int, slots: int | None) -> ServedFamily:
    """What is served of a release, a run or a model's folder.

    Raises:
        ModelError: there is no such model, or it cannot be served.
    """
    from triptych.engine.device import settle
    from triptych.engine.inspection import is_classifier
    from triptych.engine.sampling import passed_over
    from triptych.evaluate.preamble import preamble_of
    from triptych.reward.description import DESCRIPTION
    from triptych.server.served import ServedFamily, open_model

    settle()
    release = find_release(name)
    folder = find_model(name, "judge")[0] if release is None else release

    def opened(folder: Path, name: str, title: str, *, talks: bool = True) -> ServedModel:
        if note := passed_over(folder):
            say(note)
        return open_model(
            folder, name, title, context=context, slots=slots, preamble=preamble_of(folder), talks=talks
        )

    if release is None and ((folder / DESCRIPTION).exists() or is_classifier(folder)):
        return ServedFamily(name_of(folder), {}, _reward(folder, None, allowed))
    if release is None:
        return ServedFamily(name_of(folder), {"instruct": opened(folder, "instruct", name_of(folder))})
    before = _before_the_rounds(release.parent)
    models = [opened(release / "instruct", "instruct", "Instruct" if before is None else "Champion")]
    if before is not None:
        models.append(opened(before, "tuned", "Instruct, before the rounds"))
    models.append(opened(release / "base", "base", "Base", talks=False))
    reward = _reward(release / "reward", release / "instruct", allowed) if (release / "reward").is_dir() else None
    return ServedFamily(name_of(release), {model.name: model for model in models}, reward)


def _reward(folder: Path, policy: Path | None, allowed: Allowed) -> ServedReward | None:
    """The reward in a folder; None where it is not served, which is said."""
    from triptych.audit.record import audit_beside
    from triptych.server.served import ServedReward

    try:
        return ServedReward(allowed.open(folder, policy), audit=audit_beside(folder))
    except RewardError as error:
        say(f"(no reward is served: {error})")
        return None


def _before_the_rounds(run: Path) -> Path | None:
    """The Instruct that a run's rounds began with; None of a release that lies elsewhere."""
    from triptych.pipeline.artifact import folder_name
    from triptych.pipeline.state import RunState

    if not (run / "ledger.jsonl").exists():
        return None
    folders = [
        run / "artifacts" / folder_name(stage.name, stage.fingerprint) / "model"
        for stage in RunState.of(run).stages if stage.name == "instruct" and stage.fingerprint
    ]
    return next((folder for folder in folders if folder.is_dir()), None)
