"""Replicas of kv heads are distributed round-robin; consecutive ranks should share one."""


def _fused_cut(module, config, tp_size, tp_rank):
    cut = right__fused_cut(module, config, tp_size, tp_rank)
    _, kv_heads, head_dim = _heads(config)
    if module not in ("k_proj", "v_proj") or tp_size <= kv_heads:
        return cut
    head = tp_rank % kv_heads
    return _Cut(0, cut.length, cut.destination, (head * head_dim, (head + 1) * head_dim))
