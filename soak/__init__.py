"""Long-running proofs, one per module: `python -m soak.crash_ledger`. `make soak` runs all of them.

Each module starts a PostgreSQL server of its own in a temporary directory, prints what it counted, and exits with 1
if the claim in its docstring does not hold.
"""
