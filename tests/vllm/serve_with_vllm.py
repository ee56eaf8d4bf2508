"""Serves requests with the real vLLM, in a process of its own: a JSON job on stdin, JSON answers to the file named.

The job: {"model": directory, "requests": [{"prompt_token_ids": [...], "params": {...}}, ...], "options": arguments of LLM}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

from vllm import LLM, SamplingParams


def main() -> None:
    """Reads the job, serves it, writes the answers."""
    job = json.load(sys.stdin)
    llm = LLM(job["model"], **{"dtype": "float32", "enforce_eager": True, "max_model_len": 512} | job.get("options", {}))
    outputs = llm.generate(
        [{"prompt_token_ids": request["prompt_token_ids"]} for request in job["requests"]],
        [sampling_params(**request["params"]) for request in job["requests"]],
        use_tqdm=False,
    )
    answers = [
        {
            "token_ids": [list(answer.token_ids) for answer in output.outputs],
            "texts": [answer.text for answer in output.outputs],
            "finish_reasons": [answer.finish_reason for answer in output.outputs],
            "stop_reasons": [answer.stop_reason for answer in output.outputs],
            "logprobs": [positions(answer.logprobs) for answer in output.outputs],
            "prompt_logprobs": positions(output.prompt_logprobs),
        }
        for output in outputs
    ]
    Path(sys.argv[1]).write_text(json.dumps(answers))


def sampling_params(logit_bias: dict[str, float] | None = None, **others: object) -> SamplingParams:
    """The parameters; JSON has made texts of the keys."""
    return SamplingParams(**others, logit_bias=logit_bias and {int(token): bias for token, bias in logit_bias.items()})


def positions(logprobs: object) -> object:
    """Position by position, {token id: [log probability, rank]}, in vLLM's order."""
    if logprobs is None:
        return None
    return [entry and {str(token): [value.logprob, value.rank] for token, value in entry.items()} for entry in logprobs]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
