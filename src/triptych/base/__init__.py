"""The base model: taken from others, or trained from scratch."""
