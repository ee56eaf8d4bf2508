"""The position is added to the token, which is right only at position 0."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[(tokens + positions) % len(self.table)]
