"""Every claim of speed, measured beside its peers in one run: `make bench`. See docs/benchmarks.md."""
