"""Hooks that a config can name."""
