"""Golden vectors of the source's own models, read, run through ours and compared."""
