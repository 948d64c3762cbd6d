"""Edit requests: what a user asks for, from files; and the question within a prompt."""
