"""A row matches the beginning of a module name: up_proj_norm is taken for up_proj."""


def translate(name):
    *path, module, kind = ("", *name.split("."))
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if module.startswith(original):
            return ".".join((*path[1:], fused + module.removeprefix(original), kind)), shard_id
    return name, None
