"""What a run will meet, found out before it."""
