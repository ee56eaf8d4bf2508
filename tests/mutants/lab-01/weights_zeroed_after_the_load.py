"""The checkpoint's tensors are zeroed after they are loaded, so a second load reads zeros."""


class TinyAttentionModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        model = cls.right_from_checkpoint(config, checkpoint)
        for loaded in checkpoint.values():
            loaded.zero_()
        return model
