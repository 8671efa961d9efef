"""What runs in vLLM's own environment, where there is no Triptych."""
