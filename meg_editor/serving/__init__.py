"""An edited model as a server: the OpenAI protocol, edits as a resource, and a page."""
