"""A release over HTTP: its models answer in OpenAI's form, its reward scores in the forms that its callers have."""
