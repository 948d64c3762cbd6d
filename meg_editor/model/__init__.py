"""The edited model (route, generate a neuron, answer); what it writes; its folder on disk."""
