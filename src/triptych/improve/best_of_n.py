"""Best of n: the policy learns the best of n answers that the champion wrote to each prompt.

Rejection-sampling fine-tuning (Touvron et al. 2023, *Llama 2*, section 3.2.3; Dong et al. 2023, *RAFT*). The champion
writes all answers, so that what is learnt is its own best-of-n distribution, whose distance from it is bounded
(Beirami et al. 2024, *Theoretical guarantees on the best-of-n alignment policy*). No prompt is asked again: of answers
that are all alike any one is the best, and to choose among more than n would break the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from triptych.engine import distributed
from triptych.engine.curve import Curve
from triptych.engine.forward import AnswerPack, Model, answer_logprobs, pack_answers
from triptych.engine.training import Loss, Step
from triptych.improve.loop import Answers, Improvement
from triptych.improve.method import Method


class BestOfN(Improvement):
    """Improvement by fine-tuning on the best of `group_size` answers."""

    method: Literal["best_of_n"] = "best_of_n"

    @property
    def learnt_per_prompt(self) -> int:
        """The best."""
        return 1


def bound(n: int, left_out: float = 0.0) -> float:
    """The largest mean distance of what is learnt from the champion, in nats.

    log n − (n − 1)/n + H, where H = (−P·log P − (n − 1)/n·Q·log Q)/P with Q the share of prompts that are left out
    because none of their n answers ended, and P = 1 − Q.

    Beirami et al. (2024), theorem 1, is H = 0. An answer that was cut counts as worse than any that ended, so that the
    best of n is chosen as there, and what is learnt is that distribution where it ended. With u an answer's quantile
    its density is n·uⁿ⁻¹/P on [Q^(1/n), 1], whose distance from the uniform one is the above. Averaged over prompts,
    each as often as it is learnt from, it is concave in P, so that the mean share bounds the mean distance.

    Args:
        left_out: Q, below 1.
    """
    kept = 1 - left_out
    ended = -kept * math.log(kept)
    cut = -left_out * math.log(left_out) if left_out > 0 else 0.0
    return math.log(n) - (n - 1) / n + (ended + (n - 1) / n * cut) / kept


@dataclass(frozen=True, slots=True)
class Best:
    """The best answer to a prompt."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class BestOfNMethod(Method[BestOfN, AnswerPack]):
    """Best of n over the loop."""

    settings = BestOfN
    best_of_n = True

    def prepare(self, number: int) -> Step[AnswerPack]:
        """The best of what the champion writes."""
        return step(self.loop.collect(self.loop.reference, number), self.config)

    def loss(self, batch: AnswerPack) -> Loss:
        """−log p summed over the tokens of the best answers."""
        return loss(self.loop.model, batch)

    def numbers(self, curve: Curve) -> dict[str, float]:
        """The bound of what is learnt, unless no answer ended."""
        shares = [row["left_out"] / self.config.prompts_per_step for row in curve[:: self.config.updates_per_rollout]]
        left_out = sum(shares) / len(shares)
        return {"kl_bound": bound(self.config.group_size, left_out)} if left_out < 1 else {}


def step(scored: Answers, config: BestOfN) -> Step[AnswerPack]:
    """The best answers of a step; an answer that was cut has no end to be scored, and is never the best."""
    chosen = best(scored)
    sizes = [len(row.prompt) + len(row.answer) for row in chosen]
    batches = [
        pack_answers([(chosen[i].prompt, [chosen[i].answer]) for i in members], scored.rewards.device)
        for members in distributed.micro_batches(sizes, config.at_once)
    ]
    weight = max(1, sum(len(row.answer) for row in chosen))
    left_out = len(scored.groups) - len(chosen)
    return Step(
        batches, weight, scored.numbers | {"left_out": left_out}, rows=scored.lines, fault=scored.fault
    )


def best(scored: Answers) -> list[Best]:
    """Of each group the finished answer with the highest reward; a group without one is left out."""
    kept = []
    for group, rewards in zip(scored.groups, scored.rewards.tolist(), strict=True):
        finished = [(score, place) for place, (score, rollout) in enumerate(zip(rewards, group, strict=True))
                    if rollout.finished]
        if finished:
            _, place = max(finished, key=lambda one: one[0])
            kept.append(Best(group[place].prompt_tokens, group[place].tokens))
    return kept


def loss(model: Model, packed: AnswerPack) -> Loss:
    """−log p summed over the tokens of the best answers."""
    return Loss(-answer_logprobs(model, packed)[0].sum())
