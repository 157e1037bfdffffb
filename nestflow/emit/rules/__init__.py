"""An update rule as torch code."""
