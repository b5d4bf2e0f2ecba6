"""The HTTP API of the ledger: `/accounts` and `/transfers`."""
