"""What torch lacks for us: forward-mode rules, BatchNorm's tangents, channels-last operators. Knows tensors alone."""
