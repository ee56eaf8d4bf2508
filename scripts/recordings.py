"""The loads that lab 02's tests use: each can be run through the real vLLM, or read from captured/*.json.

The tests run them where vLLM is installed, and read the recordings where it is not. ``scripts/record_captured.py`` writes the
recordings from real runs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labkit.checkpoints.headers import Shape
from labkit.checkpoints.known_models import KNOWN, implied_shapes
from labkit.load.trace import Trace, trace_load


def _known(name: str, **changes: object) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((KNOWN / name / "config.json").read_text())
    return config | changes


TINY: dict[str, Any] = _known(
    "llama-3-8b",
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    num_hidden_layers=2,
    vocab_size=131,
)
"""A Llama of 0.1 million weights with unusual sizes: head_dim is not hidden_size / heads, the vocabulary is 2 * 64 + 3."""


@dataclass(frozen=True)
class Recording:
    """One load on all ranks, of shapes alone, or of a checkpoint with random values that is written for it.

    Attributes:
        title: a description of the load; the trace's ``model``.
        config: the content of config.json.
        tp_size: the number of ranks; all of them load.
        checkpoint: the tensors on disk; None for shapes alone. They may differ from those that the config implies.
    """

    title: str
    config: Mapping[str, Any]
    tp_size: int = 1
    checkpoint: Mapping[str, Shape] | None = None

    def run(self, device: str | None = None) -> Trace:
        """Loads through the real vLLM.

        Args:
            device: the device of the parameters of a real checkpoint; by default CUDA where there is a device, else the CPU.

        Raises:
            UserError: vLLM is not installed, or refuses the load.
        """
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), self.config, self.checkpoint)
            target = device if self.checkpoint else None
            return replace(trace_load(folder, self.tp_size, range(self.tp_size), target), model=self.title)


def write_checkpoint(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Shape] | None) -> None:
    """Writes config.json and, when ``tensors`` are given, model.safetensors with random float32 values of these shapes."""
    (directory / "config.json").write_text(json.dumps(config))
    if tensors is None:
        return
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator) for name, shape in tensors.items()}
    save_file(values, directory / "model.safetensors")


def _faulty(title: str, shape: Shape | None, *names: str) -> Recording:
    """A tiny checkpoint in which these tensors, of layer 1 or outside the layers, are missing or have this shape."""
    stored = implied_shapes(TINY)
    changes = {name if name in stored else f"model.layers.1.{name}": shape for name in names}
    kept = {name: shape for name, shape in {**stored, **changes}.items() if shape is not None}
    return Recording(f"tiny Llama, TP 2, {title}", TINY, tp_size=2, checkpoint=kept)


Q, K, V, QKV, O_PROJ = (f"self_attn.{name}_proj.weight" for name in ("q", "k", "v", "qkv", "o"))
GATE = "mlp.gate_proj.weight"
FAULTS: dict[str, Recording] = {
    "fault-mha-into-gqa": _faulty("k_proj and v_proj of 4 heads where the config says 2", (128, 64), K, V),
    "fault-o-proj-too-wide": _faulty("an o_proj of 160 columns where the config says 128", (64, 160), O_PROJ),
    "fault-gate-proj-too-tall": _faulty("a gate_proj of 128 rows where the config says 96", (128, 64), GATE),
    "fault-k-proj-missing": _faulty("k_proj missing", None, K),
    "fault-qkv-missing": _faulty("q_proj, k_proj and v_proj missing", None, Q, K, V),
    "fault-o-proj-missing": _faulty("o_proj missing", None, O_PROJ),
    "fault-gate-proj-missing": _faulty("gate_proj missing", None, GATE),
    "fault-embed-missing": _faulty("embed_tokens missing", None, "model.embed_tokens.weight"),
    "fault-lm-head-missing": _faulty("lm_head missing", None, "lm_head.weight"),
    "fault-stored-twice": _faulty("qkv_proj stored beside q_proj, k_proj and v_proj", (256, 64), QKV),
    "fault-bias-unread": _faulty("a q_proj bias that the config does not mention", (128,), "self_attn.q_proj.bias"),
}
"""Faulty checkpoints that vLLM loads without an error."""

RECORDINGS: dict[str, Recording] = {
    "llama-3-8b-tp1": Recording("llama-3-8b", _known("llama-3-8b")),
    "llama-3-8b-tp2": Recording("llama-3-8b", _known("llama-3-8b"), tp_size=2),
    "llama-3-8b-one-layer-tp4": Recording("llama-3-8b, layer 0 alone", _known("llama-3-8b", num_hidden_layers=1), tp_size=4),
    "llama-3-8b-one-layer-tp8": Recording("llama-3-8b, layer 0 alone", _known("llama-3-8b", num_hidden_layers=1), tp_size=8),
    "llama-3-8b-one-layer-tp16": Recording("llama-3-8b, layer 0 alone", _known("llama-3-8b", num_hidden_layers=1), tp_size=16),
    "smollm2-tp1": Recording("smollm2", _known("smollm2")),
    "smollm2-tp3": Recording("smollm2, layer 0 alone", _known("smollm2", num_hidden_layers=1), tp_size=3),
    "tiny-tp2": Recording("tiny Llama, TP 2, nothing wrong", TINY, tp_size=2, checkpoint=implied_shapes(TINY)),
    "tiny-old-habits": Recording(
        "tiny Llama, tied, saved with a copy of its head and with inv_freq",
        TINY | {"tie_word_embeddings": True},
        checkpoint=implied_shapes(TINY) | {"model.layers.0.self_attn.rotary_emb.inv_freq": (16,)},
    ),
} | FAULTS
"""Every load by the name of its recording."""
