"""Modules that several tests of Shop import."""
