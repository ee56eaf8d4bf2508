"""What models are made of; the names are vLLM's."""
