"""A small substitute for webui's own modules: the names, shapes and calls that our modules for it use.

They follow Forge f2.0.1 and AUTOMATIC1111 1.10; if the two differ, FORGE in `shared` selects one. The
model is whatever `shared.sd_model` holds.
"""
