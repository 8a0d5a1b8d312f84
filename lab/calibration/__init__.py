"""Fits a solver to a model: from a teacher's runs to the file that holds the result."""
