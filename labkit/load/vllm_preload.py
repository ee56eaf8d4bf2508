"""What the fork server of ``labkit.load.vllm_server`` imports before it forks: the real vLLM, and nothing of a plugin.

vLLM's own worker processes are started by multiprocessing's ``spawn``: a new Python each, which imports vLLM again. Here
they are forks of the same server, in which no plugin has been loaded either, so each still has to find it for itself.
"""

import multiprocessing
import multiprocessing.forkserver
import os
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
}

import vllm.entrypoints.llm
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
import vllm.v1.executor.uniproc_executor
import vllm.v1.worker.cpu_worker  # noqa: F401
from vllm.model_executor.models import registry

chosen_by_name = multiprocessing.get_context


class Forked(ForkServerProcess):
    """A fork of the server that goes by the environment of the process which asked for it, and prints where that one prints."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.environment = dict(os.environ)

    def run(self) -> None:
        """In the fork."""
        os.environ.update(self.environment)
        asked = multiprocessing.parent_process()
        assert asked is not None
        for stream in (1, 2):
            os.dup2(os.open(f"/proc/{asked.pid}/fd/{stream}", os.O_WRONLY | os.O_APPEND), stream)
        super().run()


class Forks(ForkServerContext):
    """The context that vLLM gets when it asks for ``spawn``."""

    Process = Forked


def get_context(method: str | None = None) -> BaseContext:
    """multiprocessing's, with the fork server in the place of ``spawn``."""
    return Forks() if method == "spawn" else chosen_by_name(method)


multiprocessing.get_context = get_context  # type: ignore[assignment,unused-ignore]
# A fork asks the server it comes from, whose address it has; the standard library would start one more.
multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
# vLLM looks at a class in one more process of its own, so that CUDA is not initialised by it. Here is none to be initialised.
registry._run_in_subprocess = lambda look: look()
