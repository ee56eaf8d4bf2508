"""A row matches a name with a dot before and after it, as in vLLM's mapper."""


def translate(name):
    module, _, kind = f".{name}".rpartition(".")
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if module.endswith(f".{original}"):
            return f"{module.removesuffix(original)}{fused}.{kind}"[1:], shard_id
    return name, None
