"""config.json of NewModel, as an object."""

from transformers import PretrainedConfig


class NewModelConfig(PretrainedConfig):
    """Every key of config.json is an attribute; ``vocab_size`` is the one that the model reads."""

    model_type = "new_model"
