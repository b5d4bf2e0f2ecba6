"""Connections: their options, the pool and its slots, kept connections, and prepared SELECTs."""
