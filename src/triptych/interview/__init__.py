"""People are asked which of two answers is better: one in a terminal, or several on a page."""
