"""Triptych runs the development cycle of a language model and releases a family of three."""

__version__ = "0.1.0"
