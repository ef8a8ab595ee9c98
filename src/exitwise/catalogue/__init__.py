"""What there is to choose from, by name. Needs no torch: an entry says where its code lives."""
