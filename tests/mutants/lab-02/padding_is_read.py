"""A rank reads as many rows as its parameter has, after the end of the vocabulary."""


def _cut(module, shape, config, tp_size, tp_rank):
    cut = right__cut(module, shape, config, tp_size, tp_rank)
    if module not in ("embed_tokens", "lm_head"):
        return cut
    return _Cut(0, cut.length, (0, cut.length), (tp_rank * cut.length, (tp_rank + 1) * cut.length))
