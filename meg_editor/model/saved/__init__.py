"""The folder of an edited model: its format, its versions, what is written and read."""
