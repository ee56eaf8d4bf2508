"""Verifies a tiny random checkpoint of each architecture and writes docs/verified-architectures.md.

    python scripts/record_verified.py
    git diff docs/verified-architectures.md

Fetches no weights: transformers makes every model from a config. Imports vLLM once, and runs each case in a fork.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "verified-architectures.md"

sys.path.insert(0, str(ROOT))

from labkit.load.library_output import silence_logs  # noqa: E402  # found only with the line above
from labkit.load.verify import Report, verify_model  # noqa: E402

SIZES = (1, 2, 4)

PLAIN = {"vocab_size": 131, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
GROUPED = PLAIN | {"num_key_value_heads": 2, "intermediate_size": 96}
OLD = {"vocab_size": 131, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32}
SIX_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", GROUPED),
    "MistralForCausalLM": ("MistralConfig", GROUPED | {"sliding_window": None}),
    "Qwen2ForCausalLM": ("Qwen2Config", GROUPED),
    "Qwen3ForCausalLM": ("Qwen3Config", GROUPED | {"head_dim": 64}),
    "GemmaForCausalLM": ("GemmaConfig", GROUPED | {"head_dim": 64}),
    "Gemma2ForCausalLM": ("Gemma2Config", GROUPED | {"head_dim": 64}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", GROUPED | {"head_dim": 64}),
    "PhiForCausalLM": ("PhiConfig", GROUPED | {"num_key_value_heads": 4}),
    "Phi3ForCausalLM": ("Phi3Config", GROUPED | {"pad_token_id": 0}),
    "OlmoForCausalLM": ("OlmoConfig", GROUPED),
    "Olmo2ForCausalLM": ("Olmo2Config", GROUPED),
    "Olmo3ForCausalLM": ("Olmo3Config", GROUPED),
    "GraniteForCausalLM": ("GraniteConfig", GROUPED),
    "Starcoder2ForCausalLM": ("Starcoder2Config", GROUPED),
    "StableLmForCausalLM": ("StableLmConfig", GROUPED),
    "CohereForCausalLM": ("CohereConfig", GROUPED),
    "Glm4ForCausalLM": ("Glm4Config", GROUPED | {"head_dim": 32, "pad_token_id": 0}),
    "NemotronForCausalLM": ("NemotronConfig", GROUPED),
    "SmolLM3ForCausalLM": ("SmolLM3Config", GROUPED | {"pad_token_id": 0}),
    "MixtralForCausalLM": ("MixtralConfig", GROUPED | {"num_local_experts": 4}),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 64}),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", GROUPED | EXPERTS | {"head_dim": 32}),
    "OlmoeForCausalLM": ("OlmoeConfig", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", GROUPED | {"num_local_experts": 4}),
    "GPT2LMHeadModel": ("GPT2Config", OLD),
    "GPTBigCodeForCausalLM": ("GPTBigCodeConfig", OLD),
    "GPTJForCausalLM": ("GPTJConfig", OLD | {"rotary_dim": 16}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", PLAIN | {"intermediate_size": 96}),
    "FalconForCausalLM": ("FalconConfig", PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 131, "hidden_size": 128, "n_layer": 2, "n_head": 4}),
    "OPTForCausalLM": ("OPTConfig", PLAIN | {"ffn_dim": 96, "word_embed_proj_dim": 128}),
    "MambaForCausalLM": ("MambaConfig", {"vocab_size": 131, "hidden_size": 128, "state_size": 8, "num_hidden_layers": 2}),
    "DeepseekV2ForCausalLM": (
        "DeepseekV2Config",
        GROUPED | LATENT | SIX_EXPERTS | {"num_key_value_heads": 4, "moe_intermediate_size": 64},
    ),
}
"""Architecture -> transformers' config class and the values of its config: small, with head sizes that vLLM's CPU kernel has."""


@dataclass(frozen=True)
class Row:
    """The result for one architecture, as a row of the table."""

    architecture: str
    built: str
    loads: str
    logits: str
    share: float | None


def make(architecture: str, directory: Path) -> None:
    """Writes a tiny checkpoint with random weights from a fixed seed."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config_class, settings = CASES[architecture]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**({"bos_token_id": 1, "eos_token_id": 2} | settings))
    model = getattr(transformers, architecture)._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than transformers' own 0.02, with which every module's output would be nearly zero.
            parameter.copy_(torch.randn(parameter.shape) * 0.15 + (1 if "norm" in name and name.endswith("weight") else 0))
    model.save_pretrained(directory)


def examine(architecture: str, directory: Path) -> Row:
    """Creates and verifies the checkpoint of one architecture in this process."""
    make(architecture, directory)
    return as_row(verify_model(directory, SIZES))


def as_row(report: Report) -> Row:
    """Formats a report as a row."""
    verdicts = {load.tp_size: load.verdict for load in report.loads}
    by_size = "; ".join(f"TP {size}: {verdict}" for size, verdict in verdicts.items())
    loads = "whole" if set(verdicts.values()) == {"whole"} else by_size
    for load in report.loads:
        for finding in load.findings[:1]:
            loads += f" (TP {load.tp_size}: {finding})"
        if load.refused or load.not_tried:
            loads += f" ({_short(load.refused or load.not_tried or '')})"
            break
    found = report.comparison
    if found is None:
        logits = f"not compared: {_short(report.not_compared or '')}"
    elif found.same:
        logits = "the same"
    else:
        first = f"first at the {found.first.what} of `{found.first.part}`" if found.first else "no module named"
        logits = f"**differ** by {found.largest:.1g}, {first}"
    built = report.built.removeprefix("vllm.model_executor.models.")
    return Row(report.architecture, built, loads, logits, found.largest / found.spread if found else None)


def _short(message: str) -> str:
    message = re.sub(r"\s+", " ", re.sub(r"/\S+/", ".../", message)).replace("|", "/")
    return message if len(message) < 240 else f"{message[:237]}..."


def rows(architectures: Iterable[str]) -> list[Row]:
    """Makes every row in a fork of this process, after one import of vLLM and transformers."""
    with silence_logs():
        import transformers.models.auto.modeling_auto  # noqa: F401
        from vllm import LLM  # noqa: F401

        from labkit.load.trace import real_load  # noqa: F401
        from labkit.load.verify import comparison  # noqa: F401
    found = []
    for architecture in architectures:
        found.append(_row(architecture))
        print(f"{architecture}: {found[-1].loads}; {found[-1].logits}", flush=True)
    return found


def forked(function: Callable[[], Any]) -> Any:
    """Runs a function in a fork of this process, and returns its result through JSON.

    Raises:
        RuntimeError: the process ended without a result.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        child = os.fork()
        if child == 0:
            try:
                answer.write_text(json.dumps(function()))
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not answer.is_file():
            raise RuntimeError(f"the forked process ended with status {status} and without a result")
        return json.loads(answer.read_text())


def _row(architecture: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        return Row(**forked(lambda: asdict(examine(architecture, Path(folder)))))


def table(found: list[Row]) -> str:
    """Formats the rows as Markdown."""
    head = ["| architecture | loaded by (`vllm/model_executor/models`) | loads, TP 1, 2, 4 | logits beside transformers' |"]
    body = [f"| {row.architecture} | `{row.built}` | {row.loads} | {row.logits} |" for row in found]
    return "\n".join([*head, "|---|---|---|---|", *body]) + "\n"


def with_table(text: str, found: list[Row]) -> str:
    """Replaces the text between the page's markers by this table and the largest difference among equal architectures."""
    same = [(row.share, row.architecture) for row in found if row.logits == "the same" and row.share is not None]
    share, widest = max(same)
    largest = f"\nLargest difference among the {len(same)} that are the same: {share:.1e} of the standard deviation ({widest}).\n"
    block = r"(<!-- verified: [^\n]*-->\n).*?(<!-- end of verified -->)"
    return re.sub(block, lambda marks: marks[1] + table(found) + largest + marks[2], text, flags=re.DOTALL)


def main() -> int:
    """Writes the table into the page; for the architectures named on the command line, only prints the rows."""
    found = rows(sys.argv[1:] or CASES)
    if not sys.argv[1:]:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
