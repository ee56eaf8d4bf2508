"""Used by all other packages of labkit: labs on disk, console, errors, files, and the Python environment."""
