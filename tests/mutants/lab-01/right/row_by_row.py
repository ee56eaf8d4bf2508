"""The tokens are looked up one by one, in a copy of the table under another name."""

import torch


class BigramModel:
    def __init__(self, table):
        self.rows = list(table.clone())

    def forward(self, tokens, positions):
        return torch.stack([self.rows[token] for token in tokens.tolist()])
