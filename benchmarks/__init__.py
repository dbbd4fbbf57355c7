"""Measurements: how fast, against what, on which machine. Run from the checkout, see README.md."""
