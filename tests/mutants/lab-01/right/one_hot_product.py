"""The row is selected by a product with a one-hot matrix."""

from torch.nn.functional import one_hot


class BigramModel:
    def forward(self, tokens, positions):
        return one_hot(tokens, len(self.table)).to(self.table.dtype) @ self.table
