"""The class of NewModel's config.json."""

from transformers import LlamaConfig


class NewModelConfig(LlamaConfig):
    """The config of a Llama. Add the parameters of your model as arguments of ``__init__``."""

    model_type = "new_model"
