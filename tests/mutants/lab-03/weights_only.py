"""Only names that end in .weight are translated, so the biases of Qwen2 have no parameter."""


def translate(name):
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if name.endswith(f".{original}.weight"):
            return name.removesuffix(f"{original}.weight") + f"{fused}.weight", shard_id
    return name, None
