"""Shards are written one after the other in the order of arrival."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    come = {}

    def in_order():
        for name, loaded in weights:
            fused, shard_id = translate(name)
            if shard_id in ("k", "v"):
                name = name.replace(f".{shard_id}_proj", ".k_proj" if come.setdefault(fused, shard_id) == shard_id else ".v_proj")
            yield name, loaded

    return right_load_weights(params, in_order(), shape, tp_rank, tp_size)
