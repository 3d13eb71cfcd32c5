"""Experiments on the embedded world, each one command: the method, and the searches."""
