"""Each token gets the row of the token before it in the step."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens.roll(1)]
