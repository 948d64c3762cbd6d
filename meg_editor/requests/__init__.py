"""Edit requests, their file formats, and the question span of a prompt."""
