"""Scheduling, KV blocks, sampling. Uses only ``contract.Model`` of a model."""
