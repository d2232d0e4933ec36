"""What the vectors are about: inputs, and the outcome that each one is meant to have."""
