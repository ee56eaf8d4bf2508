"""The row is chosen by where the token stands, not by what it is."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[positions % len(self.table)]
