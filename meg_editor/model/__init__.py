"""The edited model (route, generate a neuron, answer) and its folder on disk."""
