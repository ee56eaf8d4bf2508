"""The table is looked up as an embedding is."""

from torch.nn.functional import embedding


class BigramModel:
    def forward(self, tokens, positions):
        return embedding(tokens, self.table)
