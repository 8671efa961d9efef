"""A Base: taken from others, or trained from scratch."""
