"""Hyper-parameters and presets."""
