"""The kv head of a rank is computed from its share of all heads, without the number of replicas."""


def _fused_cut(module, config, tp_size, tp_rank):
    cut = right__fused_cut(module, config, tp_size, tp_rank)
    if module not in ("k_proj", "v_proj"):
        return cut
    _, kv_heads, head_dim = _heads(config)
    first = tp_rank * kv_heads // tp_size
    held = max(1, kv_heads // tp_size)
    return _Cut(cut.axis, cut.length, cut.destination, (first * head_dim, (first + held) * head_dim))
