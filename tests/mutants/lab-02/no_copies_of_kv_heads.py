"""If there are more ranks than kv heads, kv heads are divided all the same: 8 // 16 is 0."""


def _fused_cut(module, config, tp_size, tp_rank):
    heads, kv_heads, head_dim = _heads(config)
    cut = right__fused_cut(module, config, tp_size, tp_rank)
    if module not in ("q_proj", "k_proj", "v_proj") or tp_size <= kv_heads:
        return cut
    q = heads // tp_size * head_dim
    return _Cut(0, q, cut.destination, cut.source) if module == "q_proj" else _Cut(0, q, (q, q), (0, 0))
