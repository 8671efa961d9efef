"""What runs inside the sandbox: the answer's process, the tests' process, and the channel between them."""
