"""A learner's way through the labs: board, progress, watch, hints, the tour."""
