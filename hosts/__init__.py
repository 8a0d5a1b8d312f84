"""The hosts, ComfyUI and webui. No other folder imports them."""
