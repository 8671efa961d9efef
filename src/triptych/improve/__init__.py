"""Improvement against a reward model: one file for each method over one loop."""
