"""The model has only __call__, so the engine finds no forward."""


class BigramModel:
    def __call__(self, tokens, positions):
        return self.table[tokens]

    def __getattribute__(self, name):
        if name == "forward":
            raise AttributeError("a model is called: model(tokens, positions)")
        return object.__getattribute__(self, name)
