"""Shared code of the library's tests."""
