"""What nestflow costs, as ratios measured in one run: see README.md beside this file."""
