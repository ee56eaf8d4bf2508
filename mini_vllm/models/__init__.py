"""The architectures that come with the engine, and the place to add one."""
