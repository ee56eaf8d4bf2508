"""What runs the labs: the board, check, trace, fetch and the tour."""
