"""Logits are centred over the step: a request's answer depends on who stands beside it."""


class BigramModel:
    def forward(self, tokens, positions):
        logits = self.table[tokens]
        return logits - logits.mean(dim=0)
