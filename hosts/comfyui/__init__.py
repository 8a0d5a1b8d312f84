"""ComfyUI: the only modules that know it."""
