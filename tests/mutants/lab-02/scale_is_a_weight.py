"""Any tensor of a module counts as its weight: q_proj.scale gets a record."""


def _checkpoint_shape(name, config):
    return right__checkpoint_shape(f"{name.rpartition('.')[0]}.weight", config)
