"""The training and sampling mechanics, written once: packing, log-probabilities, the loop, generation."""
