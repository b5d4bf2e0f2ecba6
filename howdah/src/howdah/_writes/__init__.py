"""The parts of bulk writes."""
