"""`python -m benchmarks.scale`: what a step of improvement takes of a card and of the network, by `check`'s formulas.

Nothing is run. The models are Llamas of 1, 8 and 70 billion parameters; the cards are one, a machine's eight, and eight
such machines'. A step is 32 prompts of 256 tokens with 8 answers of 1,024 tokens to each, in micro-batches of 4,096
tokens, with a reference and a reward model of the policy's size. The weights lie in slices over the cards as
`triptych.engine.distributed` has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from triptych.engine.adapters import Lora
from triptych.engine.packing import APPLIED
from triptych.engine.training import Optimization
from triptych.preflight import memory
from triptych.preflight.memory import Architecture

MODELS = {
    "1B": Architecture(1_235_814_400, 128_256, 2048, 8192, 16, 32, 2048, 512, 131_072, stored=2),
    "8B": Architecture(8_030_261_248, 128_256, 4096, 14_336, 32, 32, 4096, 1024, 131_072, stored=2, tables=2),
    "70B": Architecture(70_553_706_496, 128_256, 8192, 28_672, 80, 64, 8192, 1024, 131_072, stored=2, tables=2),
}
"""Llama 3.2 1B, Llama 3.1 8B and 70B."""
CARDS = (1, 8, 64)
PROMPTS, PROMPT, MEMBERS, ANSWER = 32, 256, 8, 1024
MICRO_BATCH = 4096
TOKENS = PROMPTS * (PROMPT + MEMBERS * ANSWER)
KEYS = float(PROMPT + ANSWER)
CARD = 80e9
"""Bytes that an H100 has."""
RATE = 0.4 * 989e12
"""Products and sums a second: four tenths of what its data sheet says of bfloat16."""
LINK = {8: 450e9, 64: 50e9}
"""Bytes a second into a card: by NVLink inside a machine, by a network of 400 Gb/s for each card between machines."""
FULL = Optimization(learning_rate=1e-6, activation_checkpointing=True)
ADAPTED = FULL.model_copy(update={"lora": Lora(rank=16)})


def held(model: Architecture, cards: int, lora: bool = False) -> float:
    """A slice of reference and reward; on one card they are the policy's trunk, and other adapters."""
    if lora and cards == 1:
        assert ADAPTED.lora is not None
        return memory.adapters(model, ADAPTED.lora)
    return 2 * memory.frozen(model) / cards


def gathered(model: Architecture, size: int) -> float:
    """What of a sliced model is whole while a layer computes: that layer, the next, and both embeddings."""
    tables = 2 * model.vocabulary * model.width
    return size * (tables + 2 * (model.parameters - tables) / model.layers)


def loading(model: Architecture, cards: int) -> float:
    """A model that is loaded, or was trained, is whole in float32."""
    return memory.weights(model) + held(model, cards)


def loading_frozen(model: Architecture, cards: int) -> float:
    """A model that is not trained whole goes to the card in bfloat16, where its embeddings become float32."""
    return memory.arriving(model) + held(model, cards, lora=True)


def sampling(model: Architecture, cards: int) -> float:
    """The policy's own weights in slices, a whole copy in the compute type, and the cache."""
    asked = PROMPTS * MEMBERS // cards
    trained = memory.weights(model) + memory.optimizer_state(model, FULL)
    cache = memory.sampling(model, max(1, asked), PROMPT, ANSWER, MEMBERS)
    return trained / cards + memory.copies(model) + cache + held(model, cards)


def sampling_adapted(model: Architecture, cards: int) -> float:
    """The same, with adapters on a trunk in the compute type."""
    asked = PROMPTS * MEMBERS // cards
    cache = memory.sampling(model, max(1, asked), PROMPT, ANSWER, MEMBERS)
    return memory.frozen(model) / cards + memory.copies(model) + cache + held(model, cards, lora=True)


def updating(model: Architecture, cards: int) -> float:
    """Weights, gradients and moments in slices; of a pass what is gathered, autocast's copies, activations, logits."""
    sliced = 2 * memory.weights(model) + memory.optimizer_state(model, FULL)
    passed = memory.copies(model) + memory.activations(model, MICRO_BATCH, KEYS, recompute=True)
    whole = gathered(model, 4) if cards > 1 else 0.0
    return sliced / cards + whole + passed + memory.head(model, MICRO_BATCH) + held(model, cards)


def updating_adapted(model: Architecture, cards: int) -> float:
    """The trunk in slices in the compute type, and adapters, which are small; no copies, for there are no masters."""
    passed = memory.activations(model, MICRO_BATCH, KEYS, recompute=True)
    whole = gathered(model, 2) if cards > 1 else 0.0
    head = memory.head(model, MICRO_BATCH, backward=False)
    assert ADAPTED.lora is not None
    adapters = 4 * memory.adapters(model, ADAPTED.lora)  # with their gradients and two moments
    return (memory.frozen(model) + adapters) / cards + whole + passed + head + held(model, cards, lora=True)


def traffic(model: Architecture, cards: int) -> tuple[float, float]:
    """Bytes into a card in a step: of the update, and of reference, reward and the sampler's copy.

    A micro-batch gathers every weight forward and backward and sends every gradient, in float32.
    """
    share = (cards - 1) / cards
    micro_batches = math.ceil(TOKENS / cards / MICRO_BATCH)
    batches = math.ceil(TOKENS / cards / APPLIED)
    update = 3 * memory.weights(model) * micro_batches
    return share * update, share * (2 * memory.frozen(model) * batches + memory.weights(model))


def main() -> None:
    """Prints the tables."""
    columns: list[tuple[str, Callable[[Architecture, int], float]]] = [
        ("loading", loading), ("sampling", sampling), ("update", updating),
        ("loading, LoRA", loading_frozen), ("sampling, LoRA", sampling_adapted), ("update, LoRA", updating_adapted),
    ]
    print("| model | cards |" + "".join(f" {name} |" for name, _ in columns))
    print("|" + "---|" * (2 + len(columns)))
    for name, model in MODELS.items():
        for cards in CARDS:
            sizes = [measure(model, cards) for _, measure in columns]
            shown = [f"{size / 1e9:,.0f}" if size < CARD else f"**{size / 1e9:,.0f}**" for size in sizes]
            print(f"| {name} | {cards} | " + " | ".join(shown) + " |")
    print("\n| model | loading | sampling | update |\n|" + "---|" * 4)
    for name, model in MODELS.items():
        quantized = replace(model, quantized=True)
        sizes = [measure(quantized, 1) for measure in (loading_frozen, sampling_adapted, updating_adapted)]
        print(f"| {name} | " + " | ".join(f"{size / 1e9:,.1f}" for size in sizes) + " |")
    print("\n| model | cards | update, GB | other, GB | both, s | products, s |\n" + "|" + "---|" * 6)
    for name, model in MODELS.items():
        for cards, link in LINK.items():
            update, other = traffic(model, cards)
            products = (6 + 2 + 2) * model.parameters * TOKENS / cards / RATE
            print(
                f"| {name} | {cards} | {update / 1e9:,.0f} | {other / 1e9:,.0f} | {(update + other) / link:,.1f} | "
                f"{products:,.1f} |"
            )


if __name__ == "__main__":
    main()
