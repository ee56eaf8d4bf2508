"""The step's tokens are overwritten once their rows are read, as if they were the model's own memory."""


class BigramModel:
    def forward(self, tokens, positions):
        rows = self.table[tokens]
        tokens.zero_()
        return rows
