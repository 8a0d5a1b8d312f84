"""The solvers: each file makes plans from a grid of sigmas and the settings."""
