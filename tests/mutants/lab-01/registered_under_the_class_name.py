"""The factory is registered under the class's name, where config.json says the architecture's."""


def register():
    register_model("BigramModel", BigramModel.from_checkpoint)
    register_model(TINY_ARCHITECTURE, TinyAttentionModel.from_checkpoint)
