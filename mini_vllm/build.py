"""Builds an engine from a Hugging Face directory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mini_vllm.config import EngineConfig, QuantizationConfig
from mini_vllm.engine.engine import LLMEngine
from mini_vllm.forward_context import KVCache
from mini_vllm.layers.quantization import process_weights_after_loading
from mini_vllm.loading.checkpoint import Checkpoint, CheckpointError, read_json
from mini_vllm.lora import LoRAManager
from mini_vllm.models.config import check_sizes
from mini_vllm.models.registry import build_model
from mini_vllm.parallel import RankLostError, connect, tp_group
from mini_vllm.tokenizer import Tokenizer
from mini_vllm.worker import LeadingModel, follow

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_engine(
    model: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    quantization: str | Mapping[str, Any] | None = None,
    kernels: bool = True,
    max_model_len: int | None = None,
    step_trace: str | Path | None = None,
    **sizes: Any,
) -> tuple[LLMEngine, Tokenizer | None, LoRAManager]:
    """Builds and returns an engine, the directory's tokenizer (None without tokenizer.json), and a manager of LoRA adapters.

    Under torchrun each process builds its part of the model, and only rank 0 returns: every other process repeats rank 0's steps
    until rank 0 ends, and then exits.

    Args:
        model: a directory with config.json and safetensors; tokenizer.json too, for prompts and answers that are text.
        dtype: "float32", "bfloat16", "float16" or a torch.dtype; "auto" uses config.json's dtype.
        device: "cpu", or "cuda" for a GPU; each rank uses another GPU of its host.
        quantization: "int8" or "int4" rounds the weights of linear layers when they are loaded (layers/quantization.py);
            {"quant_method": "int4", "group_size": 64} sets how many inputs share a scale. None uses config.json's
            quantization_config, if present.
        kernels: whether to replace plain torch by the faster loops of mini_vllm/kernels/ where they support dtype and device.
        max_model_len: the most tokens of a request, prompt plus output; config.json's max_position_embeddings by default.
        step_trace: a file to record every step to, for ``./lab timeline``.
        sizes: other fields of :class:`EngineConfig`: block_size, num_blocks, max_num_batched_tokens, max_num_seqs,
            enable_prefix_caching.

    Raises:
        CheckpointError: the model cannot be built from the directory; the message says why.
        ValueError: a size, the dtype or the quantization is invalid, or a size of the model is not divisible by the ranks.
        RankLostError: the connection to another rank is lost.
    """
    tp, folder = connect(), Path(model)
    if not folder.is_dir():
        raise CheckpointError(f"there is no directory {folder}; give one with config.json and safetensors")
    config = read_json(folder / "config.json")
    check_sizes(config)
    engine_config = EngineConfig(
        max_model_len=_max_model_len(config, max_model_len),
        eos_token_ids=_eos_token_ids(folder, config),
        vocab_size=config.get("vocab_size"),
        **sizes,
    )
    quantization_config = _quantization(quantization, config)
    if quantization_config and device != "cpu":
        raise ValueError(f"quantization is {quantization_config} and device is {device!r}; only 'cpu' can quantize")
    with tp_group(tp):
        with default_dtype(_dtype(dtype, config)), _device(device):
            served = build_model(config, Checkpoint(folder))
        if quantization_config:
            process_weights_after_loading(served, quantization_config)
        if kernels and issubclass(type(served), nn.Module):
            # Imported here because importing numba takes a third of a second, and a model without layers does not use it.
            from mini_vllm.kernels.install import install_kernels

            install_kernels(served)
    _keep_freed_memory()
    if tp.rank:
        try:
            follow(served, tp, KVCache(engine_config.num_blocks, engine_config.block_size))
        except (RankLostError, CheckpointError) as error:
            raise SystemExit(str(error)) from None
        raise SystemExit(0)
    lora_manager = LoRAManager(served, tp)
    if tp.size > 1:
        served = LeadingModel(served, tp)
    tokenizer = Tokenizer.find(folder)
    return LLMEngine(served, engine_config, tokenizer, Path(step_trace) if step_trace else None), tokenizer, lora_manager


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def _keep_freed_memory() -> None:
    """Makes glibc's malloc keep memory that a step frees for the next step: a page returned to the kernel is cleared before its
    next use. Memory freed by loading is returned first. Without glibc, does nothing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Makes ``dtype`` torch's default for new tensors inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device is {name!r}; pass 'cpu', or 'cuda' if torch.cuda.is_available()")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def _dtype(dtype: str | torch.dtype, config: Mapping[str, Any]) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    name = config.get("dtype") or config.get("torch_dtype") or "float32" if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; it must be one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _quantization(argument: str | Mapping[str, Any] | None, config: Mapping[str, Any]) -> QuantizationConfig | None:
    from_argument, from_file = (
        None if each is None else QuantizationConfig.from_hf(each) for each in (argument, config.get("quantization_config"))
    )
    if from_argument and from_file and from_argument != from_file:
        raise ValueError(
            f"quantization is {from_argument}, and config.json's quantization_config says {from_file}; leave one of the two out"
        )
    return from_argument or from_file


def _max_model_len(config: Mapping[str, Any], asked: int | None) -> int:
    positions: int | None = config.get("max_position_embeddings")
    if asked is not None and positions is not None and asked > positions:
        raise ValueError(f"max_model_len is {asked}, above config.json's max_position_embeddings, {positions}; lower it")
    return positions or 2048 if asked is None else asked


def _eos_token_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """Reads the end-of-sequence ids, one or a list, from generation_config.json, or else from config.json, as in vLLM."""
    own_file = folder / "generation_config.json"
    generation = read_json(own_file) if own_file.exists() else {}
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    return frozenset([ids] if isinstance(ids, int) else ids or [])
