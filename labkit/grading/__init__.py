"""Grading a class: ``./lab grade``. README.md is for teachers."""
