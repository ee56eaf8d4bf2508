"""Layers that models are built from, in plain torch; the names are vLLM's."""
