"""Answers that are larger than any memory, or that contain themselves."""

SELF = []
SELF.append(SELF)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return (lambda *args, **kwargs: SELF) if len(name) % 2 else (lambda *args, **kwargs: "x" * (1 << 30))
