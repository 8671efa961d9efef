"""`python -m benchmarks.serving [--clients 64] [--seconds 60]`: a server under load, beside the engine without one.

Clients on loopback ask `triptych serve` one question after the other, each with a seed of its own, and some of them
again alone: no answer may differ. Then the engine answers as many questions without a server. The figures go to
benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "serving.json"
ALONE = 12
"""Questions that are asked again alone."""


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=None, help="by default SmolLM2-135M-Instruct")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="in which clients ask")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=64)
    result = measure(**vars(parser.parse_args()))
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(model: Path | None, clients: int, seconds: float, max_tokens: int, slots: int) -> dict[str, Any]:
    """A server's figures, and the engine's.

    Args:
        clients: that ask at a time.
        seconds: in which they do.
    """
    from benchmarks import work
    from triptych.engine.device import hardware
    from triptych.engine.models import load_tokenizer

    folder = model or work.model()
    prompts = [
        [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
        for prompt in work.prompts(load_tokenizer(folder), 256)
    ]
    command = [sys.executable, "-m", "triptych", "serve", str(folder), "--port", "0", "--context", "1024",
               "--slots", str(slots)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        assert server.stdout
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://[^/]+", line)))
        served = asyncio.run(load(address, prompts, clients, seconds, max_tokens))
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    result = served | engine(folder, prompts, max_tokens, served["requests"]) | {"hardware": hardware()}
    return result | {"share": result["tokens_per_second"] / result["engine_tokens_per_second"]}


async def load(
    address: str, prompts: list[Any], clients: int, seconds: float, max_tokens: int
) -> dict[str, Any]:
    """What clients got who asked one question after the other."""
    import httpx2

    answers: dict[int, str] = {}
    waits: list[float] = []
    errors = tokens = following = 0

    async def ask(client: httpx2.AsyncClient, number: int) -> tuple[int, Any]:
        reply = await client.post(f"{address}/v1/chat/completions", json={
            "messages": prompts[number % len(prompts)], "seed": number, "max_tokens": max_tokens,
            "temperature": 1.0,
        })
        return reply.status_code, reply.json()

    async def one(client: httpx2.AsyncClient, until: float) -> None:
        nonlocal errors, tokens, following
        while time.perf_counter() < until:
            number, following = following, following + 1
            began = time.perf_counter()
            status, reply = await ask(client, number)
            waits.append(time.perf_counter() - began)
            if status != 200:
                errors += 1
                continue
            answers[number] = reply["choices"][0]["message"]["content"]
            tokens += reply["usage"]["completion_tokens"]

    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as client:
        await ask(client, 0)  # warms it up
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one(client, began + seconds))
        spent = time.perf_counter() - began
        numbers = sorted(answers)[:: max(1, len(answers) // ALONE)][:ALONE]
        again = [(await ask(client, number))[1] for number in numbers]
    differ = sum(answers[number] != reply["choices"][0]["message"]["content"]
                 for number, reply in zip(numbers, again, strict=True))
    ordered = sorted(waits)
    return {
        "clients": clients, "requests": len(answers), "errors": errors, "tokens": tokens, "seconds": spent,
        "tokens_per_second": tokens / spent, "median_seconds": ordered[len(ordered) // 2],
        "slowest_seconds": ordered[-1], "asked_again_alone": len(numbers), "differ": differ,
    }


def engine(folder: Path, prompts: list[Any], max_tokens: int, count: int) -> dict[str, Any]:
    """The same questions, as many as were answered, by the engine that runs use."""
    from triptych.engine.device import settle
    from triptych.engine.rollout import Policy
    from triptych.engine.sampling import Sampling
    from triptych.records import Message, Prompt

    settle()
    policy = Policy.open(folder)
    questions = [
        Prompt(tuple(Message(turn["role"], turn["content"]) for turn in prompts[number % len(prompts)]))
        for number in range(count)
    ]
    policy.write(questions[:8], Sampling(8))
    began = time.perf_counter()
    written = policy.write(questions, Sampling(max_tokens, 1.0, seed=1))
    seconds = time.perf_counter() - began
    tokens = sum(len(rollout.tokens) for (rollout,) in written)
    return {"engine_tokens": tokens, "engine_seconds": seconds, "engine_tokens_per_second": tokens / seconds}


if __name__ == "__main__":
    main()
