"""How gradients flow between stages, a file per part."""
