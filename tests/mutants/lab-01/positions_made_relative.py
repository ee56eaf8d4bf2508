"""Positions are made relative to the first of the step in place, which changes the engine's tensor."""


class BigramModel:
    def forward(self, tokens, positions):
        positions -= int(positions[0])
        return self.table[tokens]
