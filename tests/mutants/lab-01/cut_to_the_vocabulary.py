"""A table that is too large is cut to the vocabulary without an error."""


class BigramModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        size = config["vocab_size"]
        return cls.right_from_checkpoint(config, {"table": checkpoint["table"][:size, :size]})
