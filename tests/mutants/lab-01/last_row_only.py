"""One row is returned, as if a step held one request and only its end mattered."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens[-1:]]
