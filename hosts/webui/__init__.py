"""webui, that is AUTOMATIC1111 and Forge: the only modules that know it."""
