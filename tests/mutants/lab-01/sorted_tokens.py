"""The step's tokens are sorted, and each distinct one is looked up once: rows come back in another order."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens.sort().values]
