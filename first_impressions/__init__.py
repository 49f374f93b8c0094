"""Apparent personality from faces: the code that the scripts share."""
