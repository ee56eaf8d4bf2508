"""The step's tokens are gone through one by one, over a copy of the table under another name."""

import torch


class BigramModel:
    def __init__(self, table):
        self.rows = list(table.clone())

    def forward(self, tokens, positions):
        return torch.stack([self.rows[token] for token in tokens.tolist()])
