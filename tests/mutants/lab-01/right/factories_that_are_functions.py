"""Functions are registered, which build the models without the class methods; the shape is compared side by side."""


class BigramModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        rows, columns = checkpoint["table"].shape
        if not rows == columns == config["vocab_size"]:
            raise ValueError(f"vocab_size {config['vocab_size']}, table {rows} x {columns}")
        return cls(checkpoint["table"])


def register():
    register_model(ARCHITECTURE, lambda config, checkpoint: BigramModel.from_checkpoint(config, checkpoint))
    register_model(TINY_ARCHITECTURE, lambda config, checkpoint: TinyAttentionModel.from_checkpoint(config, checkpoint))
