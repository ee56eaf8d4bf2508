"""The table is popped from the caller's dict, so that its memory can be freed."""


class BigramModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        model = cls.right_from_checkpoint(config, checkpoint)
        if isinstance(checkpoint, dict):
            checkpoint.pop("table")
        return model
