"""What else than labels exits learn from, a file per kind."""
