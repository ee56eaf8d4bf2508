"""forward returns probabilities, and the sampler applies softmax again."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens].softmax(dim=-1)
