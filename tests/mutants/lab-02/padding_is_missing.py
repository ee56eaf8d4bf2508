"""Rows of padding are called missing: nothing was written there."""


def _without_padding(name, shape, checkpoint_shapes, rank):
    return shape
