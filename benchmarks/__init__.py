"""Speed beside the usual stack: `make bench`, or `python -m benchmarks ROW…`."""
