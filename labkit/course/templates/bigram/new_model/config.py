"""The class of NewModel's config.json."""

from transformers import PretrainedConfig


class NewModelConfig(PretrainedConfig):
    """Every key of config.json is an attribute; the model reads ``vocab_size``."""

    model_type = "new_model"
