"""Routing of what the model itself writes, where its setting `routing` is "decoding"."""
