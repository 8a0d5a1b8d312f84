"""ComfyUI's nodes, a file per group: names, inputs and tooltips, and a call that does the work."""
