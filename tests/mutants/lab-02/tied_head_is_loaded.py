"""A tied model has an lm_head on disk, as any other."""


def _checkpoint_shape(name, config):
    return right__checkpoint_shape(name, {**config, "tie_word_embeddings": False})
