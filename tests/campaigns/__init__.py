"""Longer runs than a test suite waits for: `python tests/campaigns/NAME.py`."""
