"""The number of a layer is not compared with num_hidden_layers."""


def _checkpoint_shape(name, config):
    return right__checkpoint_shape(name, {**config, "num_hidden_layers": 10**9})
