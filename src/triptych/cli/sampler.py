"""The command that starts a server of vLLM for runs to sample with."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from triptych.cli.app import Commands, app
from triptych.cli.arguments import find_model
from triptych.cli.terminal import say

sampler = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode="rich", help="Servers for sampling.")
app.add_typer(sampler, name="sampler")


@sampler.command(context_settings={"allow_extra_args": True})
def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model of the same shape as the run's: a folder, a release, or a run.",
            show_default=False,
        ),
    ],
    vllm: Annotated[
        str, typer.Option(metavar="PROGRAM", help="vLLM's program, in an environment of its own.")
    ] = "vllm",
    host: Annotated[str, typer.Option(help="Whoever reaches it can give it weights: keep it inside.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 8000,
) -> None:
    """Starts vLLM's server as `improve.sampler: http://HOST:PORT` needs it, until it is stopped.

    Each run that samples with it gives it its own weights, by a folder in TMPDIR that both must see. What follows
    `--` is handed on to vLLM.

    Example: [bold]triptych sampler serve HuggingFaceTB/SmolLM2-135M -- --tensor-parallel-size 2[/bold]
    """
    from triptych.engine.inspection import trunk_of
    from triptych.engine.vllm_server import command, environment

    # Its shape is that of its trunk; adapters come with the run's weights.
    words = [*command(vllm, trunk_of(find_model(model, "instruct")[0]), host, port), *context.args]
    say(" ".join(words))
    os.execve(words[0], words, environment())
