"""Fixtures on a real PostgreSQL for every test here."""

# Imported before pytest looks at shop/tests, whose parent folder it would otherwise take for the package `shop`.
import howdah  # noqa: F401
import shop  # noqa: F401

pytest_plugins = ["howdah.testing"]
