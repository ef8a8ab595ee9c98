"""What trains when, a file per part."""
