"""The modules for ComfyUI; only they import it."""
