"""Proof that an architecture computes the same packed as alone, before anything is trained with it.

Our attention takes the place of the model's own. An architecture whose attention does more than scaled products
with a causal mask (sinks, biases), or that carries a state from token to token, would be silently wrong; here it
is refused by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from triptych.engine import attention
from triptych.engine.forward import answer_logprobs, pack_answers
from triptych.engine.models import load_policy
from triptych.errors import ModelError

TOLERANCE = 1e-3
"""Largest difference of a log-probability, in float32."""


def verify_packed_parity(folder: Path) -> None:
    """Compares a packed prompt with two answers to each of them alone in the model's own attention.

    Raises:
        ModelError: the log-probabilities differ, or the model cannot be called this way.
    """
    ours: Any = load_policy(folder, attention=attention.NAME)
    name = type(ours).__name__
    try:
        difference = packed_difference(ours, load_policy(folder))
    except NotPackableError as error:
        raise ModelError(f"{folder}: {name} cannot be computed in packed rows: {error}") from error
    if not difference < TOLERANCE:
        raise ModelError(
            f"{folder}: {name} does not compute the same packed as alone (log-probabilities differ by "
            f"{difference:.2g}); its attention does something that Triptych's engine does not know"
        )


class NotPackableError(ValueError):
    """A model that cannot be called with packed rows."""


@torch.no_grad()
def packed_difference(ours: Any, plain: Any) -> float:
    """The largest difference of a log-probability between a packed prompt with two answers and each of them alone.

    Args:
        ours: the model with our attention.
        plain: the same with its own.

    Raises:
        NotPackableError: the model cannot be called this way.
    """
    draw = torch.Generator("cpu").manual_seed(0)
    size = min(ours.get_output_embeddings().weight.shape[0], ours.config.get_text_config().vocab_size)
    prompt, *answers = (torch.randint(size, (length,), generator=draw, device="cpu").tolist() for length in (24, 9, 17))
    try:
        packed, _ = answer_logprobs(ours, pack_answers([(prompt, answers)], ours.device))
    except (AssertionError, TypeError, AttributeError, RuntimeError) as error:
        raise NotPackableError(error) from error
    alone = []
    for answer in answers:
        tokens = torch.tensor([[*prompt, *answer]], device=plain.device)
        logprobs = plain(input_ids=tokens).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        alone.append(logprobs.gather(1, tokens[0, len(prompt) :, None])[:, 0])
    return float((packed - torch.cat(alone)).abs().max())
