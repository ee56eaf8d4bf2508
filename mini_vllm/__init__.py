"""A small real LLM engine to read: one contract, paged KV, continuous batching.

README.md has the order; pyproject.toml's import contract has the layers.
"""

from mini_vllm.async_llm import AsyncLLM
from mini_vllm.contract import ContractError, Model
from mini_vllm.engine.engine import LLMEngine
from mini_vllm.llm import LLM, RequestError
from mini_vllm.lora import LoRARequest
from mini_vllm.models.registry import register_model
from mini_vllm.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "AsyncLLM",
    "ContractError",
    "LLMEngine",
    "LoRARequest",
    "Model",
    "RequestError",
    "SamplingParams",
    "register_model",
]
