"""Checkpoints as files: headers, known models, faults, copies, and where they are fetched from."""
