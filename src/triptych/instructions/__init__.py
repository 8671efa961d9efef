"""Verifiable instructions: what a prompt asks that code can check (Zhou et al. 2023, IFEval)."""
