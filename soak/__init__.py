"""Long-running tests, one per module: `python -m soak.crash_ledger`. `make soak` runs all of them.

Each module starts its own PostgreSQL server in a temporary directory and prints its counts. Its exit code is 1 if a
condition in its docstring is not met.
"""
