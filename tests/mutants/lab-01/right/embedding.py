"""The rows are looked up with torch's embedding function."""

from torch.nn.functional import embedding


class BigramModel:
    def forward(self, tokens, positions):
        return embedding(tokens, self.table)
