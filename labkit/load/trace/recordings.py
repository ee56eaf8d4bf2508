"""The loads that lab 02 is held against: each can be run through the real vLLM now, or read from captured/*.json.

The tests take the first where vLLM is installed and the second where it is not. ``scripts/record_captured.py`` writes the second
by running the first, so that no number in a recording was ever typed.
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
"""A Llama of 0.1 million weights with awkward sizes: a head_dim other than hidden_size / heads, a vocabulary of 2 * 64 + 3."""


@dataclass(frozen=True)
class Recording:
    """One load on all ranks: of shapes alone, or of a checkpoint with random values that is written for it.

    Attributes:
        title: what is loaded, in words; the trace's ``model``.
        config: what config.json says.
        tp_size: the number of ranks; all of them load.
        checkpoint: the tensors on disk, where they are real; they need not be those that the config implies.
    """

    title: str
    config: Mapping[str, Any]
    tp_size: int = 1
    checkpoint: Mapping[str, Shape] | None = None

    def run(self, device: str | None = None) -> Trace:
        """Loads through the real vLLM, now.

        Args:
            device: what holds the parameters of a real checkpoint; by default CUDA where there is a device, else the CPU.

        Raises:
            UserError: vLLM is not installed, or refuses the load.
        """
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), self.config, self.checkpoint)
            held_by = device if self.checkpoint else None
            return replace(trace_load(folder, self.tp_size, range(self.tp_size), held_by), model=self.title)


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


def _fault(title: str, *left_out: str, **other_shapes: Shape) -> Recording:
    """A tiny checkpoint, wrong in layer 1: modules left out, or stored in another shape (``k_proj=(128, 64)``)."""
    shapes = implied_shapes(TINY)
    missing = {name for name in shapes if name.split(".")[-2] in left_out and "layers.0" not in name}
    modules = {
        "o_proj": "self_attn",
        "q_proj": "self_attn",
        "k_proj": "self_attn",
        "v_proj": "self_attn",
        "qkv_proj": "self_attn",
    }
    changed = {f"model.layers.1.{modules.get(name, 'mlp')}.{name}.weight": shape for name, shape in other_shapes.items()}
    kept = {name: shape for name, shape in shapes.items() if name not in missing}
    return Recording(f"tiny Llama, TP 2, {title}", TINY, tp_size=2, checkpoint=kept | changed)


def _with_bias() -> Recording:
    good = _fault("a q_proj bias that the config does not mention")
    return replace(good, checkpoint=dict(good.checkpoint or {}) | {"model.layers.1.self_attn.q_proj.bias": (128,)})


FAULTS: dict[str, Recording] = {
    "fault-mha-into-gqa": _fault("k_proj and v_proj of 4 heads where the config says 2", k_proj=(128, 64), v_proj=(128, 64)),
    "fault-o-proj-too-wide": _fault("an o_proj of 160 columns where the config says 128", o_proj=(64, 160)),
    "fault-gate-proj-too-tall": _fault("a gate_proj of 128 rows where the config says 96", gate_proj=(128, 64)),
    "fault-k-proj-missing": _fault("k_proj missing", "k_proj"),
    "fault-qkv-missing": _fault("q_proj, k_proj and v_proj missing", "q_proj", "k_proj", "v_proj"),
    "fault-o-proj-missing": _fault("o_proj missing", "o_proj"),
    "fault-gate-proj-missing": _fault("gate_proj missing", "gate_proj"),
    "fault-embed-missing": _fault("embed_tokens missing", "embed_tokens"),
    "fault-lm-head-missing": _fault("lm_head missing", "lm_head"),
    "fault-stored-twice": _fault("qkv_proj stored beside q_proj, k_proj and v_proj", qkv_proj=(256, 64)),
    "fault-bias-unread": _with_bias(),
}
"""Checkpoints that vLLM loads without a complaint, and that are wrong."""

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
