"""The figures of the labs' READMEs: what they show is recorded from real runs, of the engine and of the real vLLM.

``scripts/record_figures.py`` draws them all; a test draws them again and compares.
"""
