"""Measure every claim about speed, together with other libraries, in one run: `make bench`. See docs/benchmarks.md."""
