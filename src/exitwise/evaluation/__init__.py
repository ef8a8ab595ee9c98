"""What is said about a network from its recorded outputs."""
