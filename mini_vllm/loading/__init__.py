"""Strict loading: every row of a parameter is written once and every tensor used, or one error lists all faults."""
