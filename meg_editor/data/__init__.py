"""Facts to edit and to test with: the reference world."""
