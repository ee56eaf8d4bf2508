"""Only the last row is returned, as if a step had one request."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens[-1:]]
