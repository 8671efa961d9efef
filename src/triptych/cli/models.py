"""Commands for what was made: it is talked to, measured, audited, exported, verified and pushed."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from triptych.cli.app import app
from triptych.cli.arguments import (
    RUNS,
    Allowed,
    AllowEndpoint,
    AllowFunctions,
    AllowKey,
    AllowModel,
    AllowTemplate,
    find_model,
    name_of,
)
from triptych.cli.terminal import Notes, figure, quote, say, show, table_of
from triptych.errors import AuditError, ModelError, RecipeError, ReleaseError, RewardError, TriptychError
from triptych.storage import make_folder, write_whole

if TYPE_CHECKING:
    from triptych.api import Evaluation

Temperature = Annotated[
    float | None,
    typer.Option(min=0.0, help="0 always takes the likeliest word; by default the model's own.", show_default=False),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="The longest answer; by default the model's own.", show_default=False)
]


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model's folder, a release, or a run.", show_default=False),
    ],
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Gives the same answers again.", show_default=False)
    ] = None,
    allow_endpoint: AllowEndpoint = None,
    allow_key: AllowKey = None,
    allow_functions: AllowFunctions = False,
    allow_template: AllowTemplate = False,
    allow_model: AllowModel = None,
) -> None:
    """Talks with a model; of a release the Reward model, where there is one, scores each answer.

    /reset begins anew, /quit or Ctrl-D leaves. Reads lines from a pipe as well, one for each turn.

    Example: [bold]triptych chat runs/quickstart/release --temperature 0.3[/bold]
    """
    allowed = Allowed(allow_endpoint, allow_key, allow_functions, allow_template, allow_model)
    folder, release = find_model(model, "instruct")

    from triptych.engine.chat import Chat
    from triptych.engine.device import settle
    from triptych.engine.rollout import Policy
    from triptych.engine.sampling import own_sampling, passed_over
    from triptych.engine.scoring import scored
    from triptych.evaluate.preamble import preamble_of, rendered_behind
    from triptych.records import Conversation

    settle()
    policy = Policy.open(folder)
    scorer = None
    if release and (release / "reward").is_dir():
        try:
            scorer = allowed.open(release / "reward", folder)
        except RewardError as error:
            say(f"(answers are not scored: {error})")
    seed = random.randrange(2**31) if seed is None else seed
    sampling = replace(own_sampling(folder, temperature, max_tokens), seed=seed)
    if note := passed_over(folder):
        say(note)
    preamble = preamble_of(folder)
    conversation = Chat(policy, sampling, rendered_behind(preamble, policy, sampling.max_tokens) if preamble else None)
    for line in _lines():
        if line == "/quit":
            break
        if line == "/reset":
            conversation.turns = []
            say("(a new conversation)")
            continue
        try:
            reply = conversation.reply(line)
        except ModelError as error:  # it is too long
            say(f"({error})")
            continue
        if reply.forgotten:
            say(f"(the first {reply.forgotten} turns no longer fit the model's {policy.context} tokens and are "
                "forgotten)")
        answer = reply.rollout
        quote(answer.answer + ("" if answer.finished else " …"))
        if scorer:
            try:
                scores = scored(scorer, [Conversation(answer.prompt, answer.answer)])
            except TriptychError as error:  # a rule that needs a reference, an endpoint that is not there
                say(f"(not scored: {error})")
            else:
                say((f"reward {scores.totals[0]:.2f}", "dim"))
                for name, note in scores.notes.items():
                    say(f"({name} {note})")


def _lines() -> Iterator[str]:
    """What the user types, or what comes from a pipe; empty lines are passed over."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (gives input() its history and editing)
    while True:
        try:
            line = input("› " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model's folder, a release, or a run.", show_default=False),
    ],
    prompts: Annotated[
        Path | None, typer.Option(help="Rows of {prompt}: the model answers each.", show_default=False)
    ] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="REWARD", help="Of any kind: it scores the answers.", show_default=False)
    ] = None,
    comparisons: Annotated[
        Path | None,
        typer.Option(help="Rows of {prompt, chosen, rejected}: how often a reward model agrees.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Plain text: how well the model predicts it.", show_default=False)
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,...", help="Benchmarks of lm-evaluation-harness, by name or as a task's .yaml file.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many documents of each task; by default all.", show_default=False)
    ] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option(
            "--chat-template/--no-chat-template",
            help="Whether tasks are asked by the model's chat template; by default where it has one.",
            show_default=False,
        ),
    ] = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the answers.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Writes the numbers as JSON.", show_default=False)] = None,
    allow_endpoint: AllowEndpoint = None,
    allow_key: AllowKey = None,
    allow_functions: AllowFunctions = False,
    allow_template: AllowTemplate = False,
    allow_model: AllowModel = None,
) -> None:
    """Measures a model: its answers, its reading of plain text, benchmarks, or a reward model's agreement with people.

    Of a release, --comparisons measures the Reward model and the others the Instruct model.

    Example: [bold]triptych evaluate runs/quickstart/release/instruct --prompts questions.jsonl
    --reward runs/quickstart/release/reward[/bold]
    """
    if prompts is None and comparisons is None and text is None and tasks is None:
        raise RecipeError("nothing to measure: give --prompts, --comparisons, --text or --tasks")
    if output is not None:
        make_folder(output.parent)
    if reward is not None and prompts is None:
        raise RecipeError("--reward scores answers to prompts: give --prompts as well")
    from triptych import api
    from triptych.engine.sampling import own_sampling, passed_over

    allowed = Allowed(allow_endpoint, allow_key, allow_functions, allow_template, allow_model)
    numbers: dict[str, Any] = {}
    if comparisons is not None:
        numbers |= _numbers(api.evaluate(reward=allowed.reward(model), comparisons=comparisons))
    if prompts is not None or text is not None or tasks is not None:
        folder = find_model(model, "instruct")[0]
        scorer = allowed.reward(reward, "score") if reward is not None else None
        if note := passed_over(folder):
            say(note)
        sampling = replace(own_sampling(folder, temperature, max_tokens), seed=seed)
        names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks is not None else []
        numbers |= _numbers(api.evaluate(
            folder, scorer, prompts=prompts or (), text=text or (), tasks=names, limit=limit,
            chat_template=chat_template, sampling=sampling,
        ))
    table = table_of("measured", "value", right=1)
    for name, value in numbers.items():
        table.add_row(name if "/" in name else name.replace("_", " "), figure(value))
    show(table)
    if output is not None:
        write_whole(output, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
        say(str(output))


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    """What was measured, by its name."""
    numbers: dict[str, Any] = {}
    if evaluation.agreement is not None:
        numbers |= evaluation.agreement.model_dump(exclude={"baselines"}, exclude_none=True)
        numbers |= {
            f"accuracy_of_{name.replace(' ', '_')}": share for name, share in evaluation.agreement.baselines.items()
        }
    if evaluation.answers is not None:
        survey = evaluation.answers
        numbers |= survey.model_dump(exclude={"parts", "instructions"}, exclude_none=True)
        numbers |= survey.parts | survey.instructions
    if evaluation.bits_per_byte is not None:
        numbers["bits_per_byte"] = evaluation.bits_per_byte
    for score in evaluation.benchmarks:
        kept = {"": score.value, "/interval": score.interval, "/stderr": score.stderr, "/documents": score.documents}
        numbers |= {score.name + what: value for what, value in kept.items() if value is not None}
    return numbers


@app.command()
def audit(
    reward: Annotated[
        str,
        typer.Argument(
            metavar="REWARD", help="Of any kind: a folder, a .yaml file, a model, URL#MODEL.", show_default=False
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Rows of {prompt, chosen, rejected}; RewardBench (2), RM-Bench, JudgeBench too; may be given "
            "several times.",
            show_default=False,
        ),
    ],
    training: Annotated[
        list[Path] | None,
        typer.Option(
            help="The comparisons it was trained on: a bag of words learns from them, and their prompts are left out.",
            show_default=False,
        ),
    ] = None,
    predecessor: Annotated[
        str | None, typer.Option(help="The reward model that it was refreshed from.", show_default=False)
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where audit.json and audit.html are written.")
    ] = Path("audit"),
    allow_endpoint: AllowEndpoint = None,
    allow_key: AllowKey = None,
    allow_functions: AllowFunctions = False,
    allow_template: AllowTemplate = False,
    allow_model: AllowModel = None,
) -> None:
    """Measures what a reward model is worth on comparisons that it has not seen; exit code 1 where it fails.

    Accuracy beside trivial rules and people, calibration, length, answers changed on purpose, and whether it gives
    the same scores however it is computed.

    Example: [bold]triptych audit runs/quickstart/release --data preferences.jsonl --data rewardbench.jsonl[/bold]
    """
    from triptych import api

    allowed = Allowed(allow_endpoint, allow_key, allow_functions, allow_template, allow_model)
    record = api.audit(
        allowed.reward(reward, "compare"), data, training=training or (),
        predecessor=allowed.reward(predecessor, "compare") if predecessor else None, output=output, name=reward,
        progress=Notes(),
    )
    table = table_of("ordered as labelled", "accuracy", "95% interval", right=2)
    parts = {"all": (record.accuracy, record.interval)}
    parts |= {name: (group.score, group.interval) for name, group in record.by_group.items()}
    for name, (accuracy, (low, high)) in parts.items():
        table.add_row(name, f"{accuracy:.1%}", f"{low:.1%} to {high:.1%}")
    for name, accuracy in record.baselines.items():
        low, high = record.leads[name].interval
        table.add_row(name, f"{accuracy:.1%}", f"lead {100 * low:+.1f} to {100 * high:+.1f} points")
    show(table)
    for benchmark in record.benchmarks:
        table = table_of(f"{benchmark.name}, {benchmark.items:,} items", "score", "95% interval", right=2)
        for name, measure in benchmark.measures.items():
            interval = "" if measure.interval is None else "{:.1%} to {:.1%}".format(*measure.interval)
            table.add_row(name, f"{measure.score:.1%}", interval)
        show(table)
    say(f"{record.verdict}: {record.worst}" if record.worst else record.verdict)
    for warning in record.warnings:
        if warning != record.worst:
            say(f"note: {warning}")
    say(str(output / "audit.html"))
    if not record.passed:
        raise AuditError(f"{reward} failed its audit: " + "; ".join(record.reasons))


@app.command()
def merge(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A model that is adapters, or a folder that holds such models, as a release.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder that is made.", show_default=False)],
) -> None:
    """Makes plain models of adapters and their trunk, one file of weights at a time.

    Example: [bold]triptych merge runs/mine/release plain[/bold]
    """
    from triptych import api

    say(str(api.merge(source, output)))


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model's folder, a release, or a run.", show_default=False),
    ],
    role: Annotated[
        Literal["base", "instruct", "reward"], typer.Option("--model", help="Which one of a release.")
    ] = "instruct",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.gguf", show_default=False,
            help="The file that is made; by default NAME-TYPE.gguf in the current folder.",
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--type", metavar="TYPE", help="What the matrices are rounded to: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, "
            "q4_0.",
        ),
    ] = "f16",
) -> None:
    """Writes a model as one GGUF file, for llama.cpp, and a Modelfile beside it, for Ollama.

    Chat template, stop tokens and decoding are inside. What llama.cpp would compute in another way is refused.

    Example: [bold]triptych export runs/quickstart/release --out quickstart.gguf --type q8_0[/bold]
    """
    from triptych import api

    folder, release = find_model(model, role)
    name = f"{name_of(release)}-{role}" if release else name_of(folder)
    file = api.export(folder, out or Path(f"{name}-{kind.upper()}.gguf"), type=kind, progress=Notes())
    say(f"{file}  {file.stat().st_size / 2**20:,.1f} MiB")
    say(str(file.with_suffix(".Modelfile")))


@app.command()
def verify(
    name: Annotated[
        str, typer.Argument(metavar="RELEASE", help="A release's folder, or a run in runs/.", show_default=False)
    ],
    key: Annotated[
        Path | None,
        typer.Option(metavar="PUBLIC.pem", help="The public key that it must be signed with.", show_default=False),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(help="Who must have signed it without a key, as an e-mail address.", show_default=False),
    ] = None,
    identity_provider: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Who vouches for that, as https://accounts.google.com.", show_default=False),
    ] = None,
) -> None:
    """Says whether a release holds what its manifest lists and nothing else: every other entry is named.

    Who can change files can change the manifest too. With --key or --identity the signature must hold as well.

    Example: [bold]triptych verify runs/quickstart/release --key public.pem[/bold]
    """
    from triptych.release import signature
    from triptych.release.verification import SIGNATURE
    from triptych.release.verification import verify as problems_of

    if key is not None and identity is not None:
        raise ReleaseError("a release is signed by a key or by an identity: give --key or --identity")
    if (identity is None) != (identity_provider is None):
        raise ReleaseError("--identity NAME and --identity-provider URL belong together")
    folder = _release_named(name)
    if problems := problems_of(folder):
        raise ReleaseError(f"{folder} is not what was released:\n" + "\n".join(problems))
    signed_by = ""
    if key is not None:
        signature.check_key(folder, key)
        signed_by = f", and is signed with the key of {key}"
    elif identity is not None and identity_provider is not None:
        signature.check_identity(folder, identity, identity_provider)
        signed_by = f", and is signed by {identity}"
    say(f"OK: {folder} holds what its manifest lists{signed_by}")
    if not signed_by and (folder / SIGNATURE).exists():
        say("It is signed, and the signature was not checked: give --key, or --identity and --identity-provider.")


@app.command()
def push(
    release: Annotated[
        str, typer.Argument(metavar="RELEASE", help="A release's folder, or a run in runs/.", show_default=False)
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="OWNER/NAME", help="On the Hub; -Base, -Instruct and -Reward are added.", show_default=False
        ),
    ],
    public: Annotated[
        bool | None,
        typer.Option(
            "--public/--private", show_default=False,
            help="Whether all can see them. By default new repositories are private, and others stay as they are.",
        ),
    ] = None,
    gated: Annotated[
        Literal["auto", "manual"] | None,
        typer.Option(
            help="Who wants the models asks for access, which all get (auto) or you grant (manual).", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verifies the release, lists every file and asks the Hub nothing.")
    ] = False,
) -> None:
    """Puts a release on the Hugging Face Hub: a repository for each of the three models, and a collection of them.

    The release is verified first. Given again, the command sends what the Hub does not have yet.

    Example: [bold]triptych push runs/quickstart/release me/quickstart --gated manual --dry-run[/bold]
    """
    folder = _release_named(release)
    if dry_run:
        _show_files(folder, name, public, gated)
        return
    from triptych import api

    if not api.push(folder, name, public=public, gated=gated, progress=Notes()).made:
        say("Nothing was new.")


def _show_files(folder: Path, name: str, public: bool | None, gated: str | None) -> None:
    """Every file that would be sent, with its size."""
    from triptych.release.publication import prepare

    release = prepare(folder, name)
    say(release.verified)
    table = table_of("file", "bytes", "", right=1)
    sizes = []
    roles = release.manifest.roles
    for role in roles:
        for file, content in release.content(role).items():
            sizes.append(len(content) if isinstance(content, bytes) else content.stat().st_size)
            note = "made for the Hub" if isinstance(content, bytes) else ""
            table.add_row(f"{release.repository(role)}/{file}", figure(sizes[-1]), note)
    show(table)
    seen = {None: "private where they are new", True: "public", False: "private"}[public]
    say(f"{len(roles)} repositories ({seen}{f', gated: {gated}' if gated else ''}), {len(sizes)} files, "
        f"{sum(sizes):,} bytes, and the collection {name}; nothing was sent, and the Hub was not asked")


def _release_named(name: str) -> Path:
    """The folder that was named, and no other: only of a run in runs/ it is the release inside."""
    folder = Path(name)
    run = folder if folder.exists() else RUNS / name
    return run / "release" if run.parent == RUNS and run.name != ".." else folder
