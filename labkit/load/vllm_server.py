"""Generates tokens with the real vLLM: each call runs in a fork of a process that has imported vLLM (vllm_preload.py).

The import takes ten seconds, and an engine cannot be removed completely from the process that it ran in. The server is
multiprocessing's and not labkit.system.fork_server, because vLLM's own worker processes have to be forks of it as well.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from labkit.load.library_output import describe_error
from labkit.load.plugins import PluginError, examine

Tokens = list[int]

FORK_CONTEXT = multiprocessing.get_context("forkserver")


def warm_up() -> None:
    """Starts the fork server, and does not wait until it has imported vLLM."""
    FORK_CONTEXT.set_forkserver_preload(["labkit.load.vllm_preload"])
    forkserver.ensure_running()


def serve(
    model: Path, prompts: Sequence[Tokens], max_tokens: int, plugin: Path, workers: bool = False, **options: Any
) -> list[Tokens]:
    """Generates greedily with vLLM's ``LLM(model)``, on the CPU in float32; returns the new token ids of each prompt.

    Raises PluginError, with the reason if one is found, if vLLM does not start or does not answer.

    Args:
        model: a directory with config.json and safetensors.
        plugin: the folder that ``write_plugin`` returned; every process of this call has the folder on ``sys.path``.
        workers: whether engine and model run in separate processes, as is vLLM's default; else all in one process.
        options: further arguments of ``LLM``.
    """
    warm_up()
    receiver, sender = FORK_CONTEXT.Pipe(duplex=False)
    job = {"model": str(model), "prompts": prompts, "max_tokens": max_tokens, "plugin": str(plugin), "options": options}
    process = FORK_CONTEXT.Process(target=_run, args=(job, workers, sender))
    process.start()
    sender.close()
    try:
        answer = json.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        raise PluginError(f"vLLM's process ended with exit status {process.exitcode} and without an answer") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise PluginError(answer)
    return answer  # type: ignore[no-any-return]


def _run(job: dict[str, Any], workers: bool, sender: Connection) -> None:
    """In the fork: generates, and sends the tokens, or a sentence that says why there are no tokens."""
    with tempfile.TemporaryFile("a+", errors="replace") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(workers))
        try:
            answer: list[Tokens] | str = _generate(**job)
        except BaseException as error:  # whatever a learner's model may raise
            answer = _why(error, log, **job)
        sender.send_bytes(json.dumps(answer).encode())


def _generate(model: str, prompts: list[Tokens], max_tokens: int, plugin: str, options: dict[str, Any]) -> list[Tokens]:
    from vllm import LLM, SamplingParams

    sys.path.insert(0, plugin)
    llm = LLM(model, **{"dtype": "float32", "enforce_eager": True, "skip_tokenizer_init": True, "seed": 0} | options)
    params = SamplingParams(temperature=0, max_tokens=max_tokens, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def _why(error: BaseException, log: IO[str], model: str, plugin: str, **_: Any) -> str:
    """The reason for ``error``: a fault of the plugin; else the first error in the log, where vLLM's workers print theirs."""
    if isinstance(error, NotImplementedError):
        return describe_error(error)
    try:
        examine(Path(plugin), json.loads(Path(model, "config.json").read_text())["architectures"][0])
    except PluginError as fault:
        return str(fault)
    log.seek(0)
    first = re.search(r"^(?:\(.+?\) )?(?:ERROR .*?\] )?(\w+(?:Error|Exception): .+)$", log.read(), re.MULTILINE)
    return first[1] if first else describe_error(error)
