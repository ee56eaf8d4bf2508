"""Strict loading: every row is written once and every tensor used, or one error lists all faults."""
