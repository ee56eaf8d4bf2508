"""The class itself is registered: it is called with config and checkpoint, which __init__ does not take."""


def register():
    register_model(ARCHITECTURE, BigramModel)
    register_model(TINY_ARCHITECTURE, TinyAttentionModel.from_checkpoint)
