"""The parts of pages and JSON views."""
