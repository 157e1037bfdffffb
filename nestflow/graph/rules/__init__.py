"""Updates and optimisers: from their text to a rule."""
