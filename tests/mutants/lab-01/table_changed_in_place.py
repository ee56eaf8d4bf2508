"""The returned rows are scaled in place, so the table changes with every call."""


class BigramModel:
    def forward(self, tokens, positions):
        self.table[tokens] *= 0.5
        return self.table[tokens]
