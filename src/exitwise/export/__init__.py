"""Writes networks with exits for other runtimes. What runs them without torch is :mod:`exitwise.runtime`."""
