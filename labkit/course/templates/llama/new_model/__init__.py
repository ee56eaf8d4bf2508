"""NewModel as a plugin of vLLM: pyproject.toml names ``register`` as an entry point in the group ``vllm.general_plugins``.

Every process of vLLM imports this file, so it only registers names; ``model.py`` is imported when the model is built.
"""


def register() -> None:
    """Registers the config with transformers and the model with vLLM; may be called more than once."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from new_model.config import NewModelConfig

    AutoConfig.register(NewModelConfig.model_type, NewModelConfig)
    ModelRegistry.register_model("NewModelForCausalLM", "new_model.model:NewModelForCausalLM")
