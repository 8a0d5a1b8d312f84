"""Where things are."""

models_path = "/nowhere"
