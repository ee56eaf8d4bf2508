"""The engine's loops in machine code, and the box: it reads what is there, and what it compiles itself is thrown away with it.

A kernel on disk is code that runs later, so none of a learner's process may stay. When one was missing, the judge compiles it,
for the next time. numba names the folder of a source file in its caching.py.

``python -m labkit.remote.kernels`` compiles them all: so an image brings them, and a container that is thrown away need not.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha1
from pathlib import Path

from labkit.labs import ROOT

SOURCES = ROOT / "mini_vllm" / "kernels"

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
"""A Llama in lab 01's shapes, for which its kernels are made."""

BLOCK_SIZE = 4

WEIGHTS = ("float32", "bfloat16", "int8")


def show_kernels(folder: Path) -> None:
    """Lets the box with this folder read the kernels: by links, which it cannot write through."""
    cache = os.environ.get("NUMBA_CACHE_DIR")
    kept = _place(Path(cache)) if cache else SOURCES / "__pycache__"
    place = _place(folder / "numba")
    place.mkdir(parents=True, exist_ok=True)
    for kernel in kept.glob("*.nb[ic]"):
        with suppress(FileExistsError):
            (place / kernel.name).symlink_to(kernel)


def compile_missing(folder: Path) -> None:
    """Compiles the kernels here, in the process that may keep them, if the box had to compile one."""
    if not all(kernel.is_symlink() for kernel in _place(folder / "numba").iterdir()):
        compile_kernels()


def compile_kernels() -> None:
    """Serves a Llama of one layer with each kind of weights; numba keeps what it compiles for that."""
    import torch

    from mini_vllm import LLMEngine, SamplingParams
    from mini_vllm.config import EngineConfig, QuantizationConfig
    from mini_vllm.kernels.install import install_kernels
    from mini_vllm.layers.quantization import process_weights_after_loading
    from mini_vllm.models.llama import LlamaConfig, LlamaForCausalLM

    for weights in WEIGHTS:
        model = LlamaForCausalLM(LlamaConfig.from_hf(CONFIG))
        for parameter in model.parameters():
            parameter.data.normal_()
            if weights == "bfloat16":
                parameter.data = parameter.data.bfloat16().float()
        if weights == "int8":
            process_weights_after_loading(model, QuantizationConfig("int8"))
        install_kernels(model)
        engine = LLMEngine(model, EngineConfig(max_model_len=64, block_size=BLOCK_SIZE))
        engine.add_request("one", [1] * 40, SamplingParams(max_tokens=4, ignore_eos=True))
        with torch.inference_mode():
            while engine.has_unfinished_requests():
                engine.step()


def _place(cache: Path) -> Path:
    """Where numba keeps the kernels in a folder for those of many sources."""
    return cache / f"{SOURCES.name}_{sha1(str(SOURCES).encode()).hexdigest()}"


if __name__ == "__main__":
    compile_kernels()
