"""A small world in which the truth is known: the text, the tasks and the exact judge of the quickstart.

Everything is drawn from integer seeds, so that the same seed gives the same world on every machine.
"""
