"""A token-level level as a Python function."""
