"""A step gets the logits of the tokens of the step before, if both steps have the same shape."""


class BigramModel:
    def forward(self, tokens, positions):
        last, self.last = getattr(self, "last", tokens), tokens
        return self.table[last if last.shape == tokens.shape else tokens]
