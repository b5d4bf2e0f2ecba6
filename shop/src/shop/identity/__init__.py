"""Who signs in: accounts of people, sessions, tokens and API keys."""
