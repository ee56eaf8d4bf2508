"""Drawings as SVG and HTML."""
