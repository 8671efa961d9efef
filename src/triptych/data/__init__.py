"""Reading and checking files, the chat template, splits, lengths."""
