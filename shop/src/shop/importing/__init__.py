"""Brings the history of other systems into the shop."""
