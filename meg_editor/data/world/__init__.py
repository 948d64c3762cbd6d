"""The reference world: the facts which the shipped reference model knows."""
