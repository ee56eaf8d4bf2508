"""Compiled kernels for the sandbox: it reads the kernels on disk; the kernels that it compiles are deleted with its folder.

A kernel on disk is code that runs later, so a learner's process must not write one. The judge adds missing ones later. numba's
caching.py names the folder of a source file.

``python -m labkit.isolation.compiled_kernels`` compiles all kernels; docker/Dockerfile runs this command.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha1
from pathlib import Path

from labkit.system.labs import ROOT

KERNELS = ROOT / "mini_vllm" / "kernels"
"""The folder of the sources that numba compiles."""

CONFIG: dict[str, float] = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=1, vocab_size=128, max_position_embeddings=64
)
CONFIG |= dict(rms_norm_eps=1e-5, rope_theta=10000.0, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
"""The config of a Llama with lab 01's shapes; the kernels are compiled for these shapes."""


def link_kernels(folder: Path) -> None:
    """Links the kernels on disk into a sandbox's folder; the sandbox cannot write through a link."""
    cache = os.environ.get("NUMBA_CACHE_DIR")
    kernels = _kernel_folder(Path(cache)) if cache else KERNELS / "__pycache__"
    links = _kernel_folder(folder / "numba")
    links.mkdir(parents=True, exist_ok=True)
    for kernel in kernels.glob("*.nb[ic]"):
        with suppress(FileExistsError):
            (links / kernel.name).symlink_to(kernel)


def compile_missing(folder: Path) -> None:
    """Compiles all kernels in this process, which may write them to disk, if the sandbox had to compile one."""
    if not all(kernel.is_symlink() for kernel in _kernel_folder(folder / "numba").iterdir()):
        compile_kernels()


def compile_kernels() -> None:
    """Generates tokens with a one-layer Llama for each element type of weights; numba writes the compiled kernels to disk."""
    import torch

    from mini_vllm import LLMEngine, SamplingParams
    from mini_vllm.config import EngineConfig, QuantizationConfig
    from mini_vllm.kernels.install import install_kernels
    from mini_vllm.layers.quantization import process_weights_after_loading
    from mini_vllm.models.llama import LlamaConfig, LlamaForCausalLM

    for weights in ("float32", "bfloat16", "int8"):
        model = LlamaForCausalLM(LlamaConfig.from_hf(CONFIG))
        for parameter in model.parameters():
            parameter.data.normal_()
            if weights == "bfloat16":
                parameter.data = parameter.data.bfloat16().float()
        if weights == "int8":
            process_weights_after_loading(model, QuantizationConfig("int8"))
        install_kernels(model)
        engine = LLMEngine(model, EngineConfig(max_model_len=64, block_size=4))
        engine.add_request("one", [1] * 40, SamplingParams(max_tokens=4, ignore_eos=True))
        with torch.inference_mode():
            while engine.has_unfinished_requests():
                engine.step()


def _kernel_folder(cache: Path) -> Path:
    """The folder in which numba caches the kernels, if NUMBA_CACHE_DIR is ``cache``."""
    return cache / f"{KERNELS.name}_{sha1(str(KERNELS).encode()).hexdigest()}"


if __name__ == "__main__":
    compile_kernels()
