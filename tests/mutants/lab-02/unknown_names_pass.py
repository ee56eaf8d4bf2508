"""A name that no Llama has gets a record with the hidden size."""


def _checkpoint_shape(name, config):
    try:
        return right__checkpoint_shape(name, config)
    except ValueError:
        return (config["hidden_size"], config["hidden_size"])
