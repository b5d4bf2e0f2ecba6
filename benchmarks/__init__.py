"""Every speed claim, measured together with its peers in one run: `make bench`. See docs/benchmarks.md."""
