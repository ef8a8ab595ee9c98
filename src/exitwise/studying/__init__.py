"""Which training pays: variants beside a baseline, seed by seed, at equal updates and at equal time."""
