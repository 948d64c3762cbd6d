"""The edits of a model as they come and go: editions, changes, their history and their log."""
