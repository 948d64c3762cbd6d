"""MeG inside other libraries: EasyEdit, lm-evaluation-harness."""
