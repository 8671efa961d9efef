"""vLLM where it is installed: as the sampler, the same answers' distribution with other noise; as a reader of rewards.

It is meant for CUDA devices and large models. The engine runs in this process beside the model in training; after each
update it is handed the weights by their names in the Hugging Face folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from triptych.engine.adapters import learnt
from triptych.engine.device import compute_dtype
from triptych.engine.forward import Model
from triptych.engine.request import Completion
from triptych.engine.sampler import Sampler
from triptych.engine.sampling import End, Sampling, ending
from triptych.errors import ModelError

SHARE = 0.35
"""Of the device's memory; the rest is for training."""


class VllmSampler(Sampler):
    """An engine of vLLM that writes answers with the weights of a model in training.

    Args:
        folder: the Hugging Face folder that the model was loaded from.
    """

    def __init__(self, folder: Path) -> None:
        # In this process, so that weights are handed over as they are and not through a pipe.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError as error:
            raise ModelError("improve.sampler is vllm, which is not installed: pip install vllm") from error
        self._parameters = vllm.SamplingParams
        self._engine: Any = vllm.LLM(
            model=str(folder), dtype=str(compute_dtype()).removeprefix("torch."), skip_tokenizer_init=True,
            gpu_memory_utilization=SHARE, logprobs_mode="processed_logprobs",
        )

    def load_weights(self, model: Model) -> None:
        """Takes over what the model has learnt; what was computed with the old weights is forgotten."""
        weights = list(learnt(model))
        self._engine.apply_model(lambda engine: engine.load_weights(weights))
        self._engine.reset_prefix_cache()

    def generate(
        self, prompts: Sequence[Sequence[int]], end: End, sampling: Sampling, *, n: int, numbers: Sequence[int],
        watch: Callable[[int, int], None],
    ) -> list[list[Completion]]:
        """As :func:`triptych.engine.generation.generate`; the noise belongs to seed and request here too."""
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        settings = [
            self._parameters(
                n=n, max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
                seed=(sampling.seed * 1_000_003 + number * n) % 2**31, stop_token_ids=list(ending(end)),
                ignore_eos=True, logprobs=0, detokenize=False,
            )
            for number in numbers
        ]
        outputs = self._engine.generate(asked, settings, use_tqdm=False)
        groups = [[_completion(answer, ending(end)) for answer in output.outputs] for output in outputs]
        watch(len(prompts) * n, sum(len(completion.tokens) for group in groups for completion in group))
        return groups


def pooled(folder: Path, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """`[N, K]` outputs of a reward model's folder in float32, as vLLM reads them at the last token of each row.

    `problem_type: regression` in the folder's config keeps vLLM from an activation of its own.
    """
    import vllm

    engine: Any = vllm.LLM(
        model=str(folder), runner="pooling", convert="classify", dtype="float32", skip_tokenizer_init=True,
        gpu_memory_utilization=SHARE, enforce_eager=True,
    )
    outputs = engine.classify([{"prompt_token_ids": list(row)} for row in rows], use_tqdm=False)
    return [list(output.outputs.probs) for output in outputs]


def _completion(answer: Any, ends: Collection[int]) -> Completion:
    """vLLM's answer with the log-probability of each of its tokens."""
    tokens = list(answer.token_ids)
    logprobs = [float(candidates[token].logprob) for token, candidates in zip(tokens, answer.logprobs, strict=True)]
    return Completion(tokens, logprobs, finished=bool(tokens) and tokens[-1] in ends)
