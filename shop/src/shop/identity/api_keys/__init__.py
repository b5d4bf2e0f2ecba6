"""API keys: how machines authenticate. A key acts for the user who created it, within its scopes."""
