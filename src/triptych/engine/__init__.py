"""The training and sampling mechanics, written once: packing, log-probabilities, the loop, generation."""

from logging import ERROR, getLogger

getLogger("bitsandbytes").setLevel(ERROR)  # peft imports it, and it warns of kernels that nothing here uses
