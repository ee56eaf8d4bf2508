"""The rows of the table are compared with the vocabulary, but its columns are not."""


class BigramModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        table = checkpoint["table"]
        if len(table) != config["vocab_size"]:
            raise ValueError(f"{tuple(table.shape)} is not {config['vocab_size']} square")
        return cls(table)
