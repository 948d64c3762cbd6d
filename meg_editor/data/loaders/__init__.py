"""Loaders of the field's data sets."""
