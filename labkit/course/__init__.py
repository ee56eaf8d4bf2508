"""The course: board, progress, hints, reset, watch, tour, templates of new models, assertion helpers of the lab tests."""
