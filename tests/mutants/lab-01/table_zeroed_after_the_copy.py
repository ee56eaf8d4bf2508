"""The checkpoint's table is zeroed once the model has its copy, as if nobody else read it."""


class BigramModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        table = cls.right_from_checkpoint(config, checkpoint).table
        model = cls(table.clone())
        table.zero_()
        return model
