"""Serves a directory under torchrun and writes what rank 0 answered; test_tensor_parallel.py starts it.

    torchrun --nproc-per-node 2 serve_ranks.py TASK RESULT.json

TASK is JSON: ``folder``; ``prompts``, lists of token ids; ``max_tokens``; ``options`` of LLM; ``die``: a rank that is killed in
the middle, or null.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mini_vllm import LLM, SamplingParams
from mini_vllm.layers import attention
from mini_vllm.parallel import RankLostError


def die_at_call(number: int) -> None:
    """Has this process killed when attention is asked for the ``number``-th time."""
    calls, forward = 0, attention.Attention.forward

    def counted(self: attention.Attention, *tensors: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, *tensors)

    attention.Attention.forward = counted  # type: ignore[method-assign]


def main(task: dict[str, Any], result: Path) -> None:
    """Answers all prompts, greedily."""
    if task["die"] == int(os.environ["RANK"]):
        die_at_call(7)
    try:
        llm = LLM(task["folder"], dtype="float32", **task["options"])
        params = SamplingParams(temperature=0, max_tokens=task["max_tokens"], ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in task["prompts"]], params)
    except RankLostError as error:
        sys.exit(str(error))
    result.write_text(json.dumps([output.outputs[0].token_ids for output in outputs]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
