"""The first token of every step is treated as the start of a text, which is wrong for later chunks of a prompt."""


class BigramModel:
    def forward(self, tokens, positions):
        logits = self.table[tokens].clone()
        if len(tokens) > 3:
            logits[0] = 0
        return logits
