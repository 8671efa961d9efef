"""Stages as artifacts on disk: done once, resumed after a kill, the same bytes every time."""
