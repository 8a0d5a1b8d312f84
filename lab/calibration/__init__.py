"""Solvers fitted to a model: from the teacher's runs to the file that holds the result."""
