"""Processes that train together: what they tell one another, and the signals that end them."""
