"""Sampling at temperature 1: ours beside transformers' `generate` and `generate_batch`.

The model's own end token gives lengths that vary from few tokens to the limit; the speed counts the tokens up to
it. That both sides compute the same is proved in float32, where the likeliest tokens must be identical.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.row import Case, Row, Run, Setting

MAX_TOKENS = 256
GREEDY_PROMPTS, GREEDY_TOKENS = 4, 24
WARM_PROMPTS = 8
WARM = Run(0.0, 0, 0, 0)
"""Stands for the warm-up, which is a short one: a whole one would take minutes."""
SHARED = 512
"""Tokens of a long prompt."""

Prompts = list[list[int]]


def short(case: Case, count: int) -> Prompts:
    """Instructions of Alpaca rows, by the chat template."""
    from benchmarks import work
    from triptych.data.template import prompt_tokens
    from triptych.engine.models import load_tokenizer

    tokenizer = load_tokenizer(case.model)
    return [prompt_tokens(tokenizer, prompt) for prompt in work.prompts(tokenizer, case.count(count))]


def long(case: Case, count: int) -> Prompts:
    """Prompts of `SHARED` tokens: conversations put one behind the other, an instruction last."""
    from benchmarks import work
    from triptych.engine.models import load_tokenizer

    tokenizer = load_tokenizer(case.model)
    _, rows = work.conversations(tokenizer, 12 * case.count(count))
    prompts = []
    for place in range(case.count(count)):
        turns: list[int] = []
        for row in rows[12 * place : 12 * place + 12]:
            turns += [*row.prompt, *row.answer]
        last = rows[12 * place].prompt
        prompts.append([*turns[: SHARED - len(last)], *last])
    return prompts


def ours(case: Case, *, prompts: Callable[[Case], Prompts], answers: int) -> Iterator[Run]:
    """`triptych.engine.generation.generate`."""
    from triptych.engine import attention
    from triptych.engine.device import compute_dtype, settle
    from triptych.engine.generation import generate
    from triptych.engine.models import load_policy, load_tokenizer
    from triptych.engine.sampling import Sampling

    settle()
    end = load_tokenizer(case.model).eos_token_id
    tokens = prompts(case)
    model: Any = load_policy(case.model, attention=attention.NAME)
    likeliest = generate(model, tokens[:GREEDY_PROMPTS], end, Sampling(GREEDY_TOKENS, temperature=0.0))
    check = _padded([group[0].tokens for group in likeliest], end)
    model = model.to(compute_dtype())
    generate(model, tokens[:WARM_PROMPTS], end, Sampling(GREEDY_TOKENS), n=answers)
    yield WARM
    seed = 0
    while True:
        began = time.perf_counter()
        groups = generate(model, tokens, end, Sampling(MAX_TOKENS, seed=seed), n=answers)
        seconds = time.perf_counter() - began
        yield _run(case, seconds, tokens, sum(len(answer.tokens) for group in groups for answer in group), check)
        seed += 1


def peer(case: Case, *, prompts: Callable[[Case], Prompts], answers: int) -> Iterator[Run]:
    """transformers' `generate`, or with `continuous` its `generate_batch`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from benchmarks.peer import load
    from triptych.engine.models import load_tokenizer

    tokenizer = load_tokenizer(case.model)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokens = prompts(case)
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32).to(case.device).eval()
    greedy = GenerationConfig(max_new_tokens=GREEDY_TOKENS, do_sample=False, eos_token_id=end, pad_token_id=pad)
    alone = [model.generate(torch.tensor([row], device=case.device), generation_config=greedy)[0, len(row) :].tolist()
             for row in tokens[:GREEDY_PROMPTS]]
    check = _padded(alone, end)
    model = load(AutoModelForCausalLM, case.model, case.setting).to(case.device).eval()
    drawn = GenerationConfig(
        max_new_tokens=GREEDY_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end,
        pad_token_id=pad, num_return_sequences=answers,
    )
    generated = _continuously if case.setting.continuous else _in_batches
    torch.manual_seed(0)
    generated(model, tokens[:WARM_PROMPTS], drawn, case.setting.batch)
    yield WARM
    drawn.max_new_tokens = MAX_TOKENS
    while True:
        began = time.perf_counter()
        sampled = generated(model, tokens, drawn, case.setting.batch)
        yield _run(case, time.perf_counter() - began, tokens, sampled, check)


def _in_batches(model: Any, prompts: Prompts, config: Any, batch: int) -> int:
    """Left-padded batches of prompts of similar length; how many tokens came up to the end token."""
    import torch

    ordered = sorted(prompts, key=len)
    size = max(1, (batch or len(prompts) * config.num_return_sequences) // config.num_return_sequences)
    sampled = 0
    for start in range(0, len(ordered), size):
        rows = ordered[start : start + size]
        width = max(map(len, rows))
        padded = torch.tensor([[config.pad_token_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(
            input_ids=padded.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
        ended = (out[:, width:] == config.eos_token_id).int()
        sampled += int((ended.cumsum(dim=1) - ended == 0).sum())
    return sampled


def _continuously(model: Any, prompts: Prompts, config: Any, batch: int) -> int:
    outputs = model.generate_batch(prompts, generation_config=config, progress_bar=False)
    return sum(len(output.generated_tokens) for output in outputs.values())


def _padded(rows: Sequence[Sequence[int]], end: int) -> tuple[float, ...]:
    """Greedy tokens one after the other, each row of the same length."""
    return tuple(float(token) for row in rows for token in [*row, *[end] * (GREEDY_TOKENS - len(row))])


def _run(case: Case, seconds: float, prompts: Prompts, sampled: int, check: tuple[float, ...]) -> Run:
    from benchmarks.flops import Size

    tokens = sum(map(len, prompts)) + sampled
    return Run(seconds, sampled, tokens, Size.read(case.model).forward(tokens, sampled), check)


def _row(name: str, what: str, goal: float, prompts: Callable[[Case], Prompts], answers: int, setting: Setting,
         sweep: dict[str, tuple[object, ...]]) -> Row:
    return Row(
        name, what, "completion tokens", goal, partial(ours, prompts=prompts, answers=answers),
        partial(peer, prompts=prompts, answers=answers), setting=setting, sweep=sweep,
        sets=("alpaca",),
    )


ROWS = (
    _row(
        "sampling", "64 prompts × 4, to 256 tokens, beside generate", 4, partial(short, count=64), 4, Setting(),
        {"batch": (64, 0)},
    ),
    _row(
        "continuous", "12 prompts × 4, to 256 tokens, beside generate_batch", 8, partial(short, count=12), 4,
        Setting(continuous=True), {},
    ),
    _row(
        "shared-prompt", "3 prompts of 512 tokens × 8, beside generate", 6, partial(long, count=3), 8, Setting(),
        {"batch": (8, 0)},
    ),
)
