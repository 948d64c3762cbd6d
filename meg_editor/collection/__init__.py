"""Knowledge-weight collection: one neuron per fact, optimised on the frozen LM (4.1 c.1)."""
