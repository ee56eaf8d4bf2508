"""The class itself is registered as factory, but __init__ does not take (config, checkpoint)."""


def register():
    register_model(ARCHITECTURE, BigramModel)
    register_model(TINY_ARCHITECTURE, TinyAttentionModel.from_checkpoint)
