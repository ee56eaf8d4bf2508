"""A small real LLM engine, made to be read: one contract, paged KV, continuous batching.

The floors, top to bottom; imports only go down:

    5  __main__.py  llm.py  async_llm.py  build.py    the front doors: LLM.generate(), LLM.chat(), AsyncLLM.generate()
       inputs.py  tokenizer.py  lora.py  worker.py    prompts, text, adapters; what ranks other than the first do
    4  engine/   request  scheduler  block_pool  runner  sampler  detokenizer  step_trace  engine
    3  models/   registry  config  decoder  llama  qwen2  qwen3  mistral       loading/  checkpoint  mapping  loader  lora
    2  layers/   attention  linear  embedding  norm  rotary  activation  quantization  lora
                 paged_attention  packed_matmul  tiles  compiled  vectors   loops that torch has no fast kernel for
                 graph                                           decode steps without the Python between them
    1  forward_context.py  parallel.py
    0  contract.py  config.py  sampling_params.py  outputs.py
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
