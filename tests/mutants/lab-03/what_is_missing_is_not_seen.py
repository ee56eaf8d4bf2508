"""Missing shards are not reported."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    to_come = {(name, shard_id) for name in params for shard_id in shards_of(name)}
    for name, loaded in weights:
        parameter, shard_id = translate(name)
        if (parameter, shard_id) not in to_come:
            raise ValueError(f"{name} has no parameter, or came twice")
        load_shard(params[parameter], loaded, shard_id, shape, tp_rank, tp_size)
        to_come.remove((parameter, shard_id))
    return set(params)
