"""A function over many files in worker processes, resumable, with a list of failures."""
