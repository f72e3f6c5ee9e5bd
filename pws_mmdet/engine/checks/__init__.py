"""Checks of the data and weights before a run."""
