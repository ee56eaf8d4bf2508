"""What was seen before is kept and weighs on what comes after: the answer depends on who was served earlier."""


class BigramModel:
    def forward(self, tokens, positions):
        self.before = getattr(self, "before", 0)
        logits = self.table[tokens] + self.before
        self.before = self.before + 0.1 * self.table[tokens].mean(dim=0)
        return logits
