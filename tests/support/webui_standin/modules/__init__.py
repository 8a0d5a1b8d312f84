"""A small stand-in of webui's own modules: the names, shapes and order of calls that our door meets.

They were read off Forge f2.0.1 and AUTOMATIC1111 1.10; where the two differ, FORGE in `shared` says
which it is. Nothing here paints: the model is whatever `shared.sd_model` holds.
"""
