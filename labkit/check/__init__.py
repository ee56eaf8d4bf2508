"""The verdict on one file: pytest in a child process, its results and its report."""
