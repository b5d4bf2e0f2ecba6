"""Sign-in: credentials, sessions, tokens and API keys of users."""
