"""config.json of NewModel, as an object."""

from transformers import LlamaConfig


class NewModelConfig(LlamaConfig):
    """A Llama's, to begin with. What your model has besides becomes an argument of ``__init__`` here."""

    model_type = "new_model"
