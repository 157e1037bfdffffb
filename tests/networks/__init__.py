"""Networks of the caller (`extern`)."""
