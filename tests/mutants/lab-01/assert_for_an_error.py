"""A wrong shape is refused by an assert, which python -O removes."""


class BigramModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        size = config["vocab_size"]
        assert checkpoint["table"].shape == (size, size), f"{tuple(checkpoint['table'].shape)} is not {size}, {size}"
        return cls(checkpoint["table"])
