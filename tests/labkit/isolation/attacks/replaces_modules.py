"""Puts its own modules where pytest, mini_vllm and json were."""

import sys
import types


class Nothing(types.ModuleType):
    def __getattr__(self, name):
        return Nothing(name)

    def __call__(self, *args, **kwargs):
        return self


for name in list(sys.modules):
    if name.split(".")[0] in ("pytest", "_pytest", "mini_vllm", "json", "hypothesis"):
        sys.modules[name] = Nothing(name)
