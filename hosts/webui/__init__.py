"""The modules for webui, that is AUTOMATIC1111 and Forge; only they import it."""
