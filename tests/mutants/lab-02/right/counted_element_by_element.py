"""Small parameters are counted element by element, and parts are found where the count changes."""

import numpy as np


def _parts(shape, spans, wanted):
    spans = list(spans)
    if len(shape) != 1 or shape[0] > 10**6:
        return right__parts(shape, spans, wanted)
    count = np.zeros(shape[0], int)
    for ((start, stop),) in spans:
        count[start:stop] += 1
    marked = np.concatenate(([False], [wanted(n) for n in count], [False])).astype(int)
    edges = np.flatnonzero(np.diff(marked)).tolist()
    return [((start, stop),) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
