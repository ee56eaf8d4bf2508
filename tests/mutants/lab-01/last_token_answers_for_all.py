"""The step is taken for one request: every row is the last token's."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table[tokens[-1]].expand(len(tokens), -1)
