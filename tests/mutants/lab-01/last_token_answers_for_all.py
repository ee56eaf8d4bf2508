"""Every row is the row of the last token, as if a step had one request."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens[-1]].expand(len(tokens), -1)
