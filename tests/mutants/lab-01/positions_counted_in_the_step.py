"""Positions are counted from the start of the step, which is wrong for later chunks and decodes."""

import torch


class TinyAttentionModel:
    def forward(self, tokens, positions):
        return self.right_forward(tokens, torch.arange(len(tokens)))
