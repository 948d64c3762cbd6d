"""Knowledge weights: one neuron per fact, optimised on the frozen LM (section 4.1 c.1)."""
