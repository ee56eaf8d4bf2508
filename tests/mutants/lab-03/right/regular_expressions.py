"""Names are matched by one regular expression, built from the rows."""

import re

BY_MODULE = {original: (fused, shard_id) for fused, original, shard_id in STACKED_PARAMS_MAPPING}


def translate(name):
    match = re.fullmatch(rf"((?:.*\.)?)({'|'.join(BY_MODULE)})\.([^.]+)", name)
    if match is None:
        return name, None
    fused, shard_id = BY_MODULE[match[2]]
    return f"{match[1]}{fused}.{match[3]}", shard_id
