"""What people are asked and what they say: questions, page, inbox, verdicts."""
