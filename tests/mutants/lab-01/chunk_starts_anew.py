"""The first token of every step is taken for the beginning of a text: a prompt that comes in chunks is answered otherwise."""


class BigramModel:
    def forward(self, tokens, positions):
        logits = self.table[tokens].clone()
        if len(tokens) > 3:
            logits[0] = 0
        return logits
