"""The ledger over HTTP: `/accounts` and `/transfers`."""
