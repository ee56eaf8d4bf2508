"""The rows that are returned are made colder in place: the model forgets a little with every call."""


class BigramModel:
    def forward(self, tokens, positions):
        self.table[tokens] *= 0.5
        return self.table[tokens]
