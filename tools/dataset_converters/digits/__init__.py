"""Small data sets of handwritten digits, for demos and tests."""
