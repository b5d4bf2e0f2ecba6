"""Shared code of Shop's tests."""
