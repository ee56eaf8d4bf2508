"""Who runs when, and where their keys and values live. Knows ``contract.Model`` and nothing else of a model."""
