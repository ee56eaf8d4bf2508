"""A small real LLM engine, made to be read: one contract, paged KV, continuous batching.

The floors, top to bottom; imports only go down:

    5  llm.py                                     the front door: LLM.generate(), LLM.chat()
    4  engine/   request  scheduler  block_pool  runner  sampler  engine
    3  models/   registry  llama                  loading/  checkpoint  mapping  loader
    2  layers/   attention  linear  embedding  norm  rotary  activation
    1  forward_context.py
    0  contract.py  config.py  sampling_params.py  outputs.py
"""

from mini_vllm.contract import ContractError, Model
from mini_vllm.engine.engine import LLMEngine
from mini_vllm.llm import LLM
from mini_vllm.models.registry import register_model
from mini_vllm.sampling_params import SamplingParams

__all__ = ["LLM", "ContractError", "LLMEngine", "Model", "SamplingParams", "register_model"]
