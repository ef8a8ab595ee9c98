"""What to try before anything is trained: candidates, their times here, a probe of their features, what follows."""
