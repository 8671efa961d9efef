"""Every method of improvement behind one interface: its settings, and the work of its stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from triptych.improve import best_of_n, dpo, grpo, ppo, rloo
from triptych.pipeline.stage import Metrics

Method = grpo.Grpo | rloo.Rloo | ppo.Ppo | dpo.Dpo | best_of_n.BestOfN

WORKS: Mapping[type[Method], Callable[..., Metrics]] = {
    grpo.Grpo: grpo.improve, rloo.Rloo: rloo.improve, ppo.Ppo: ppo.improve, dpo.Dpo: dpo.improve,
    best_of_n.BestOfN: best_of_n.improve,
}
"""What the stage of each method does."""
