"""Facts to edit: the reference world, and the data sets of the field."""
