"""vLLM's server, whose workers can also take weights over whole. Nothing of Triptych can be imported here.

vLLM itself reloads weights layer by layer. On a CPU a head has its matrix once more, in the processor's order; where
the head is tied to the embeddings, no file holds a weight of it, and vLLM 0.32 leaves that second copy as it was.
"""

from __future__ import annotations

import ctypes
import runpy
import signal
import sys
from typing import Any

WITH_PARENT = "--end-with-parent"
"""The server ends when the process that started it does, also when that one is killed (prctl(2) of Linux)."""
PR_SET_PDEATHSIG = 1


class WholeReload:
    """What vLLM adds to its workers (`--worker-extension-cls`)."""

    def reload_whole(self: Any, folder: str) -> None:
        """Takes over the weights of a Hugging Face folder, a tied head's too."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=folder)
        for layer in self.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)


if __name__ == "__main__":
    if WITH_PARENT in sys.argv:
        sys.argv.remove(WITH_PARENT)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
