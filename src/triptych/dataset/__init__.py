"""The run's data: the user's files read, checked and split."""
