"""All faults of a bad day, at random, under load."""
