"""The command line: parsing and printing only.

What computes is imported inside the commands, so that `--help` and `status` answer at once.
"""

from __future__ import annotations

# In the order in which --help lists the commands.
from triptych.cli import recipes, data, cycle, people, stages, runs, models, serve, sampler  # isort: skip
from triptych.cli.app import app

__all__ = ["app", "cycle", "data", "models", "people", "recipes", "runs", "sampler", "serve", "stages"]
