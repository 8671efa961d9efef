"""Proof: scores with intervals, and the gate between candidate and champion."""
