"""Benchmarks: our figure beside the physical limit and the peer, measured in one run."""
