"""Rows are matched with a dot on either side, as vLLM's mapper does it."""


def translate(name):
    module, _, kind = f".{name}".rpartition(".")
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if module.endswith(f".{original}"):
            return f"{module.removesuffix(original)}{fused}.{kind}"[1:], shard_id
    return name, None
