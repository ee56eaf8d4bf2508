"""A step of one token is taken for the continuation of the last one: its answer is looked up by the step before."""


class BigramModel:
    def forward(self, tokens, positions):
        last, self.last = getattr(self, "last", tokens), tokens
        return self.table[last if last.shape == tokens.shape else tokens]
