"""The edited model: routing, generating a neuron and answering; saved as one folder."""
