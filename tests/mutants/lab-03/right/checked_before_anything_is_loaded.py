"""All names are counted first. The load starts only if there is no fault, in the order of the parameters."""

from collections import Counter


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    come = [(name, *translate(name), loaded) for name, loaded in weights]
    wanted = [(name, shard_id) for name in params for shard_id in shards_of(name)]
    times = Counter((parameter, shard_id) for _, parameter, shard_id, _ in come)
    faults = [f"unknown: {name}" for name, parameter, shard_id, _ in come if (parameter, shard_id) not in wanted]
    faults += [f"twice: {name}" for name, parameter, shard_id, _ in come if times[parameter, shard_id] > 1]
    faults += [f"missing: {name} ({shard_id})" for name, shard_id in wanted if not times[name, shard_id]]
    if faults:
        raise ValueError("\n".join(faults))
    for _, parameter, shard_id, loaded in sorted(come, key=lambda row: str(row[1:3])):
        load_shard(params[parameter], loaded, shard_id, shape, tp_rank, tp_size)
    return {parameter for _, parameter, _, _ in come}
