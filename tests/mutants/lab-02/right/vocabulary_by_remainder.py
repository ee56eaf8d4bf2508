"""The padding is computed from the remainder."""


def _cut(module, shape, config, tp_size, tp_rank):
    if module not in ("embed_tokens", "lm_head"):
        return right__cut(module, shape, config, tp_size, tp_rank)
    per_rank = (shape[0] + (VOCAB_PADDING - shape[0] % VOCAB_PADDING) % VOCAB_PADDING) // tp_size
    held = [row for row in (tp_rank * per_rank, (tp_rank + 1) * per_rank)]
    start, stop = (shape[0] if edge > shape[0] else edge for edge in held)
    return _Cut(0, per_rank, (0, stop - start), (start, stop))
