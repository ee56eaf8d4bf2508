"""A row matches the end of a module name: backup_proj is taken for up_proj."""


def translate(name):
    *path, module, kind = ("", *name.split("."))
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if module.endswith(original):
            return ".".join((*path[1:], module.removesuffix(original) + fused, kind)), shard_id
    return name, None
