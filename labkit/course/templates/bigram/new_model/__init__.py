"""NewModel, as a plugin of vLLM: pyproject.toml names ``register`` in the group ``vllm.general_plugins``.

Every process of vLLM imports this file, so it does no more than name things; ``model.py`` is imported where it is built.
"""


def register() -> None:
    """Tells transformers how to read this config.json, and vLLM who builds the model; as good the second time as the first."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from new_model.config import NewModelConfig

    AutoConfig.register(NewModelConfig.model_type, NewModelConfig)
    ModelRegistry.register_model("NewModelForCausalLM", "new_model.model:NewModelForCausalLM")
