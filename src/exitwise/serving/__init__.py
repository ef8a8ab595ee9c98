"""Batches at every stage: samples that stay are batched again, so that early exits are worth it under load."""
