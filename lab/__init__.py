"""The lab compares samplers, plots schedules, and calibrates solvers. It never imports a host."""
