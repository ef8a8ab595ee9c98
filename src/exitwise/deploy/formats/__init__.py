"""Export formats, a file each."""
