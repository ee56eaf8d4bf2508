"""SVG drawings: the elements of all pictures, and the timeline of a step trace."""
