"""What each sample's loss counts at each exit, a file per part."""
