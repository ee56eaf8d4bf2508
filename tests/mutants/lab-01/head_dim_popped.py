"""A size is popped from the caller's config after it is read."""


class TinyAttentionModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        model = cls.right_from_checkpoint(config, checkpoint)
        if isinstance(config, dict):
            config.pop("head_dim")
        return model
