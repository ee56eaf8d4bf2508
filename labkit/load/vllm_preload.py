"""Modules that the fork server of vllm_server.py imports before it forks: the real vLLM, but no plugin.

vLLM starts each worker process by multiprocessing's ``spawn``: as a new Python, which imports vLLM again. Here each worker is a
fork of the same server. The server has loaded no plugin, so each worker still has to find the plugin by itself.
"""

import multiprocessing
import multiprocessing.forkserver
import os
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}

import vllm.entrypoints.llm
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
import vllm.v1.executor.uniproc_executor
import vllm.v1.worker.cpu_worker  # noqa: F401
from vllm.model_executor.models import registry

original_get_context = multiprocessing.get_context


class ForkProcess(ForkServerProcess):
    """A fork of the server with the environment and the output of the process that starts it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.environment = dict(os.environ)

    def run(self) -> None:
        """In the fork: sets the environment and the output of the parent process, and runs the target."""
        os.environ.update(self.environment)
        parent = multiprocessing.parent_process()
        assert parent is not None
        for stream in (1, 2):
            os.dup2(os.open(f"/proc/{parent.pid}/fd/{stream}", os.O_WRONLY | os.O_APPEND), stream)
        super().run()


class ForkContext(ForkServerContext):
    """The context that vLLM gets when it requests ``spawn``."""

    Process = ForkProcess


def get_context(method: str | None = None) -> BaseContext:
    """multiprocessing.get_context, but for ``spawn`` it returns the context of the fork server."""
    return ForkContext() if method == "spawn" else original_get_context(method)


multiprocessing.get_context = get_context  # type: ignore[assignment,unused-ignore]
# A fork has the address of the server it was forked from; the standard library would start another server.
multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
# vLLM inspects a class in a subprocess, so that CUDA is not initialized in the parent. There is no CUDA here.
registry._run_in_subprocess = lambda inspect: inspect()
