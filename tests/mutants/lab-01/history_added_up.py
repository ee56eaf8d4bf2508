"""Earlier logits are added to later ones, so the logits depend on earlier requests."""


class BigramModel:
    def forward(self, tokens, positions):
        self.before = getattr(self, "before", 0)
        logits = self.table[tokens] + self.before
        self.before = self.before + 0.1 * self.table[tokens].mean(dim=0)
        return logits
