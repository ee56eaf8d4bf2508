"""A Llama in small empties the checkpoint's tensors when its layers are filled: a second load reads zeros."""


class TinyAttentionModel:
    @classmethod
    def from_checkpoint(cls, config, checkpoint):
        model = cls.right_from_checkpoint(config, checkpoint)
        for loaded in checkpoint.values():
            loaded.zero_()
        return model
