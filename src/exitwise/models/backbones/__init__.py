"""Exits on networks that others built: traced, cut, or kept whole."""
