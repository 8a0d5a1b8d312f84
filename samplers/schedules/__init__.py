"""Noise schedules, training schedules, and the lists of sigmas that follow from them."""
