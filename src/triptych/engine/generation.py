"""The generation loop: the scheduler admits, prompts are prefilled, running requests decoded, their tokens sampled.

A model that does not pack decodes with transformers' own cache, which knows its layers' states, in a loop of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from triptych.engine.cache import PrefillRecorder, SlotCache, allocate, slots_within
from triptych.engine.cuda_graph import CudaGraph
from triptych.engine.device import any_order
from triptych.engine.forward import Model, logits, packs, row_states
from triptych.engine.packing import Pack, Segment, rounded, whole
from triptych.engine.request import Completion, Request
from triptych.engine.sampling import End, Sampling, draw, ending, uniforms
from triptych.engine.scheduler import Scheduler


@torch.no_grad()
@any_order()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    end: End,
    sampling: Sampling,
    *,
    n: int = 1,
    numbers: Sequence[int] | None = None,
    slots: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> list[list[Completion]]:
    """Samples n answers to each prompt.

    Args:
        model: a causal language model.
        prompts: token ids, none empty.
        end: the token that ends an answer, or several of which each does.
        numbers: of the prompts, to which the noise belongs; by default their places. A part of a batch that is told
            its numbers in the whole is answered as it is there.
        slots: requests decoded together; by default as many as the cache has room for.
        watch: told the answers done and the tokens sampled, after each step.

    Returns:
        For each prompt its n answers, in order.
    """
    assert all(len(prompt) > 0 for prompt in prompts), "a prompt has tokens"
    numbers = range(len(prompts)) if numbers is None else numbers
    ends = ending(end)
    completions = [[Completion() for _ in range(n)] for _ in prompts]
    if not packs(model):
        _generate_unpacked(model, prompts, ends, sampling, numbers, completions, slots, watch)
        return completions
    cache = allocate(model, prompts, n, sampling.max_tokens, slots)
    scheduler = Scheduler(prompts, cache, sampling.max_tokens)
    step = decode_step(model, cache)
    sampled = 0
    while scheduler.unfinished:
        if admitted := scheduler.admit():
            first, rows = prefill(model, cache, [prompts[i] for i in admitted], len(scheduler.running))
            started = [
                Request(number=numbers[i] * n + k, prompt_length=len(prompts[i]), prompt_row=row,
                        completion=completions[i][k], ends=ends)
                for i, row in zip(admitted, rows, strict=True) for k in range(n)
            ]
            _sample(first, started, sampling)
            scheduler.running += started
        else:
            _sample(decode(step, cache, scheduler.running), scheduler.running, sampling)
        sampled += len(scheduler.running)
        scheduler.retire()
        if watch:
            watch(scheduler.done, sampled)
    return completions


def _generate_unpacked(
    model: Model, prompts: Sequence[Sequence[int]], ends: Collection[int], sampling: Sampling, numbers: Sequence[int],
    completions: Sequence[Sequence[Completion]], slots: int | None, watch: Callable[[int, int], None] | None,
) -> None:
    """Fills the completions, prompts of one length together: they need no padding, which a state would run through."""
    n = len(completions[0]) if completions else 1
    done = sampled = 0
    for length in sorted({len(prompt) for prompt in prompts}):
        alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        together = max(1, (slots or slots_within(model, length + sampling.max_tokens)) // n)
        for start in range(0, len(alike), together):
            members = alike[start : start + together]
            requests = [
                Request(number=numbers[i] * n + k, prompt_length=length, completion=completions[i][k], ends=ends)
                for i in members for k in range(n)
            ]
            tokens = torch.tensor([prompts[i] for i in members for _ in range(n)], device=model.device)
            kept: dict[str, Any] = {}
            running = list(range(len(requests)))
            while running:  # those that have ended are computed on, and not looked at
                output = model.base_model(input_ids=tokens, use_cache=True, **kept)
                kept = {name: output[name] for name in ("past_key_values", "cache_params") if name in output}
                scores = logits(model, output.last_hidden_state[running, -1])
                _sample(scores, [requests[place] for place in running], sampling)
                sampled += len(running)
                running = [place for place in running if not requests[place].ended(sampling.max_tokens)]
                tokens = torch.tensor([[request.next_token] for request in requests], device=model.device)
                if watch:
                    watch(done + len(requests) - len(running), sampled)
            done += len(requests)


def prefill(
    model: Model, cache: SlotCache, prompts: Sequence[Sequence[int]], first_slot: int
) -> tuple[Tensor, list[int]]:
    """Computes prompts in one pack and puts their keys into the cache, for the slots from `first_slot` on.

    Returns:
        The logits of each answer's first token, `[prompts * n, V]`, and the row of each prompt's keys.
    """
    pack = Pack([Segment(prompt) for prompt in prompts], model.device, apart=cache.apart)
    recorder = PrefillRecorder(pack)
    states = row_states(model, pack.tokens, pack.positions, recorder)
    rows = [
        cache.add_prompt(first_slot + i * cache.members, int(pack.starts[i]), int(pack.ends[i]) + 1, recorder)
        for i in range(len(prompts))
    ]
    ends = functional.pad(pack.ends, (0, whole(len(prompts)) - len(prompts))) if cache.apart else pack.ends
    return logits(model, states[ends])[: len(prompts)].repeat_interleave(cache.members, dim=0), rows


def decode(step: Callable[..., Tensor], cache: SlotCache, running: Sequence[Request]) -> Tensor:
    """The logits of every running request's next token; free slots behind them fill the rows up to a usual number."""
    usual = _power_of_two if cache.device.type == "cuda" else whole if cache.apart else rounded
    rows = min(usual(len(running)), cache.slots.rows)
    return step(*cache.advance(running, rows))[: len(running)]


def decode_step(model: Model, cache: SlotCache) -> Callable[..., Tensor]:
    """What computes a decoding step from the cache's state; on a CUDA device it is recorded for each depth."""

    def step(tokens: Tensor, in_slot: Tensor, in_prompt: Tensor) -> Tensor:
        return logits(model, row_states(model, tokens, cache.begin(in_slot, in_prompt), cache))

    # Rotary embeddings of the kind "dynamic" look at the positions on the host, which cannot be recorded.
    dynamic = any(getattr(part, "rope_type", "") == "dynamic" for part in model.modules())
    if cache.device.type != "cuda" or dynamic:
        return step
    recorded: dict[int, CudaGraph] = {}

    def replayed(*state: Tensor) -> Tensor:
        if cache.slots.depth not in recorded:
            recorded.clear()  # a deeper cache is laid out anew
            recorded[cache.slots.depth] = CudaGraph(step)
        return recorded[cache.slots.depth](*state)

    return replayed


def _power_of_two(count: int) -> int:
    """The next one; a device's steps are recorded for each number of rows."""
    return 1 << (count - 1).bit_length()


def _sample(scores: Tensor, requests: Sequence[Request], sampling: Sampling) -> None:
    """Draws each request's next token and appends it with its log-probability."""
    noise = uniforms(sampling.seed, [request.number for request in requests], [request.length for request in requests])
    tokens, logprobs = draw(scores, torch.from_numpy(noise).to(scores.device), sampling)
    for request, token, logprob in zip(requests, tokens.tolist(), logprobs.tolist(), strict=True):
        request.take(token, logprob)
