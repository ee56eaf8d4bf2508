"""Column t of the table is returned, the logits before token t, not row t."""


class BigramModel:
    def forward(self, tokens, positions):
        return self.table.T[tokens]
