"""The base of all rooms: labs on disk, console, errors, files, and the Python environment."""
