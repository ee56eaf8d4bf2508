"""From files to parameters, strictly: every row written once, every tensor used, or one error that says everything."""
