"""A bigram is taken for the pair that came before: each token is answered with the row of its left neighbour."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens.roll(1)]
