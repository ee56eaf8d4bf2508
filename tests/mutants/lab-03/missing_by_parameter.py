"""A parameter counts as loaded after its first shard, as in vLLM's track_weights_loading."""


def load_weights(params, weights, shape, tp_rank=0, tp_size=1):
    seen = set()

    def noted():
        for name, loaded in weights:
            seen.add(translate(name)[0])
            yield name, loaded

    try:
        return right_load_weights(params, noted(), shape, tp_rank, tp_size)
    except ValueError:
        if seen != set(params):
            raise
        return set(params)
