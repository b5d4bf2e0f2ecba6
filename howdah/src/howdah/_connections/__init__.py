"""Connections: options, the pool, and connections kept for single reads."""
