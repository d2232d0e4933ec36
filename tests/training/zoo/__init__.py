"""Whole models: variants of the families that benchmarks share, and pretrained ones from other people's wheels."""
