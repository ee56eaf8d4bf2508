"""The architectures that come with the engine; registry.py adds others."""
