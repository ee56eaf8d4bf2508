"""The checkpoint's table is zeroed after the model has copied it."""


class BigramModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        table = cls.right_from_checkpoint(config, checkpoint).table
        model = cls(table.clone())
        table.zero_()
        return model
