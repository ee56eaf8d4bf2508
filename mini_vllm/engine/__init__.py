"""Scheduling, KV blocks, sampling. Knows ``contract.Model`` and nothing else of a model."""
