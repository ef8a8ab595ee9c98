"""Files: written whole or not at all, and read safely. Knows no content."""
