"""What does not divide evenly is rounded down: the last heads are nobody's."""


def share(total, tp_size, what):
    return total // tp_size
