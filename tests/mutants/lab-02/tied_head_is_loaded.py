"""A tied model gets a record for lm_head."""


def _checkpoint_shape(name, config):
    return right__checkpoint_shape(name, {**config, "tie_word_embeddings": False})
