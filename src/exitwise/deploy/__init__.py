"""Runs and exports calibrated networks outside training: bundles, ONNX, monitoring."""
