"""Files, folders and signals."""
