"""The tokens of the step are overwritten after they are read."""


class BigramModel:
    def forward(self, tokens, positions):
        rows = self.table[tokens]
        tokens.zero_()
        return rows
