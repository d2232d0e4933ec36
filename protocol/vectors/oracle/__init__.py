"""A second reading of SPEC.md with nothing but the standard library: slow, small, and without a line of the product's code."""
