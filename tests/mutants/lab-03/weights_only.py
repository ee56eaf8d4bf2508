"""Only names that end in .weight are translated: Qwen2's biases are left where no parameter is."""


def translate(name):
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if name.endswith(f".{original}.weight"):
            return name.removesuffix(f"{original}.weight") + f"{fused}.weight", shard_id
    return name, None
