"""What the commands do, a file per job, callable from Python."""
