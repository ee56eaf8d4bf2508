"""The vocabulary is divided by the ranks first, and then padded to 64 on each rank."""


def _cut(module, shape, config, tp_size, tp_rank):
    if module not in ("embed_tokens", "lm_head"):
        return right__cut(module, shape, config, tp_size, tp_rank)
    rows = -(-(-(-shape[0] // tp_size)) // VOCAB_PADDING) * VOCAB_PADDING
    start, stop = min(tp_rank * rows, shape[0]), min((tp_rank + 1) * rows, shape[0])
    return _Cut(0, rows, (0, stop - start), (start, stop))
