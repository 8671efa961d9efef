"""The audit: what a reward model is worth, measured before it may train anything."""
