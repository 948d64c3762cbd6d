"""The four fitting stages in order."""
