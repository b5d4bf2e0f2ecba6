"""Pages on which people sign in with a browser. They work without scripts, except for the one-time link."""
