"""Figures of the labs' READMEs, drawn from runs of the engine and loads of the real vLLM.

``scripts/record_figures.py`` draws all of them; a test draws them again and compares.
"""
