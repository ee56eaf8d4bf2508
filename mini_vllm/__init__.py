"""A small real LLM engine to read: one contract, paged KV, continuous batching. README.md has the order.

Imports only go down; the contract is in pyproject.toml:

    __main__  async_llm  llm                        interfaces: command line, streaming, blocking
    build  inputs                                   from a directory to an engine; prompts
    tokenizer  lora  worker  kernels/               text, adapters, other ranks, faster layers
    engine/                                         request  scheduler  block_pool  runner  sampler  detokenizer  engine
    models/                                         registry  config  decoder  llama  qwen2  qwen3  mistral
    loading/                                        checkpoint  mapping  loader  lora
    layers/                                         attention  linear  embedding  norm  rotary  activation  quantization  lora
    forward_context  parallel
    contract  config  sampling_params  outputs
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
