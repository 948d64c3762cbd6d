"""The language model: loading, its FFN, the neuron hook, partial forward passes, tokens."""
