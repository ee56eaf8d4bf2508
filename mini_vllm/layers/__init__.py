"""Layers that models are built from, in plain torch; named as in vLLM."""
