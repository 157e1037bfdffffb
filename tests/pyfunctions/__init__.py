"""`py("pkg.mod:fn")`: Python functions of the user."""
