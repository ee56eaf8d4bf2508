"""The tokens of the step are sorted and looked up once each, so rows are in the wrong order."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens.sort().values]
