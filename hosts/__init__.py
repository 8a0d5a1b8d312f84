"""The only modules that know a host."""
