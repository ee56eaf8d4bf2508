"""Grading one file: pytest in a child process, its reporter, and the report."""
