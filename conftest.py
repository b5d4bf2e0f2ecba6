pytest_plugins = ["howdah.testing"]
