"""The language model: loading it, finding its FFN, adding a neuron, running a part of it."""
