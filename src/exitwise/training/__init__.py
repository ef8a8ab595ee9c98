"""The training loop, and what it writes so that a run can be resumed."""
