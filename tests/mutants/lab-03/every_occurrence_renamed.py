"""The right module is found, but every occurrence of its name in the path is replaced."""


def translate(name):
    module = name.split(".")[-2] if "." in name else ""
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if module == original:
            return name.replace(original, fused), shard_id
    return name, None
