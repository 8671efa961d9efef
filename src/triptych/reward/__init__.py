"""Reward models: trained on comparisons, and audited before they may train anything."""
