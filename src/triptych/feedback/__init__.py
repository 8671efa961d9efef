"""Where comparisons come from: files, and a judge that labels what the model writes."""
