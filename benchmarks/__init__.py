"""Speed as ratios inside one run: to the machine's measured roofs, and to what a user would write otherwise."""
