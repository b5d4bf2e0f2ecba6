"""Accounts, transfers and entries: double-entry bookkeeping in integer amounts."""
