"""The first model that was built is kept in the class, and every other directory gets it."""


class BigramModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        if not hasattr(cls, "built"):
            cls.built = cls.right_from_checkpoint(config, checkpoint)
        return cls.built
