"""The factory is registered under the name of the class, not of the architecture in config.json."""


def register():
    register_model("BigramModel", BigramModel.from_checkpoint)
    register_model(TINY_ARCHITECTURE, TinyAttentionModel.from_checkpoint)
