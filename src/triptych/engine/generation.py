"""The generation loop: the scheduler admits, prompts are prefilled, running requests decoded, their tokens sampled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from triptych.engine.cache import PrefillRecorder, SlotCache, allocate
from triptych.engine.cuda_graph import CudaGraph
from triptych.engine.forward import Model, hidden_states
from triptych.engine.logprobs import output_logits
from triptych.engine.packing import Pack, Segment, rounded
from triptych.engine.request import Completion, Request
from triptych.engine.sampling import End, Sampling, draw, ending, uniforms
from triptych.engine.scheduler import Scheduler


@torch.no_grad()
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
        model: a causal language model with our attention.
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
    cache = allocate(model, prompts, n, sampling.max_tokens, slots)
    scheduler = Scheduler(prompts, cache, sampling.max_tokens)
    decode_step = _decode_step(model, cache)
    sampled = 0
    while scheduler.unfinished:
        if admitted := scheduler.admit():
            logits, rows = _prefill(model, cache, [prompts[i] for i in admitted], len(scheduler.running))
            started = [
                Request(numbers[i] * n + k, len(prompts[i]), row, completions[i][k])
                for i, row in zip(admitted, rows, strict=True) for k in range(n)
            ]
            _sample(logits, started, ends, sampling)
            scheduler.running += started
        else:
            _sample(_decode(decode_step, cache, scheduler.running), scheduler.running, ends, sampling)
        sampled += len(scheduler.running)
        scheduler.retire()
        if watch:
            watch(scheduler.done, sampled)
    return completions


def _prefill(
    model: Model, cache: SlotCache, prompts: Sequence[Sequence[int]], first_slot: int
) -> tuple[Tensor, list[int]]:
    """Computes prompts in one pack and puts their keys into the cache, for the slots from `first_slot` on.

    Returns:
        The logits of each answer's first token, `[prompts * n, V]`, and the row of each prompt's keys.
    """
    pack = Pack([Segment(prompt) for prompt in prompts], model.device)
    recorder = PrefillRecorder(pack)
    states = hidden_states(model, pack.tokens, pack.positions, recorder)
    rows = [
        cache.add_prompt(first_slot + i * cache.members, int(pack.starts[i]), int(pack.ends[i]) + 1, recorder)
        for i in range(len(prompts))
    ]
    return _logits(model, states[pack.ends]).repeat_interleave(cache.members, dim=0), rows


def _decode(step: Callable[..., Tensor], cache: SlotCache, running: Sequence[Request]) -> Tensor:
    """The logits of every running request's next token; free slots behind them fill the rows up to a usual number."""
    usual = (_power_of_two if cache.device.type == "cuda" else rounded)(len(running))
    state = cache.advance(running, min(usual, cache.slots.rows))
    return step(*state)[: len(running)]


def _decode_step(model: Model, cache: SlotCache) -> Callable[..., Tensor]:
    """What computes a decoding step from the cache's state; on a CUDA device it is recorded for each depth."""

    def step(tokens: Tensor, in_slot: Tensor, in_prompt: Tensor) -> Tensor:
        return _logits(model, hidden_states(model, tokens, cache.begin(in_slot, in_prompt), cache))

    # Rotary embeddings of the kind "dynamic" look at the positions on the host, which cannot be recorded.
    dynamic = any(getattr(part, "rope_type", "") == "dynamic" for part in model.modules())
    if cache.device.type != "cuda" or dynamic:
        return step
    recorded: dict[int, CudaGraph] = {}

    def replayed(*state: Tensor) -> Tensor:
        if cache.slots.depth not in recorded:
            recorded.clear()  # a deeper cache lies elsewhere
            recorded[cache.slots.depth] = CudaGraph(step)
        return recorded[cache.slots.depth](*state)

    return replayed


def _power_of_two(count: int) -> int:
    """The next one; a device's steps are recorded for each number of rows."""
    return 1 << (count - 1).bit_length()


def _logits(model: Model, states: Tensor) -> Tensor:
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return output_logits(states, model.get_output_embeddings(), softcap)


def _sample(logits: Tensor, requests: Sequence[Request], ends: Collection[int], sampling: Sampling) -> None:
    """Draws each request's next token and appends it with its log-probability."""
    noise = uniforms(sampling.seed, [request.number for request in requests], [request.length for request in requests])
    tokens, logprobs = draw(logits, torch.from_numpy(noise).to(logits.device), sampling)
    for request, token, logprob in zip(requests, tokens.tolist(), logprobs.tolist(), strict=True):
        request.next_token = token
        request.completion.tokens.append(token)
        request.completion.logprobs.append(logprob)
        request.completion.finished = token in ends
