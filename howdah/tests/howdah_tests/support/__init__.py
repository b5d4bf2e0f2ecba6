"""Modules that several tests of the library import."""
