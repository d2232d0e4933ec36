"""The aggregation protocol, pure: no sockets, threads, files, wall clock or global randomness (SPEC.md)."""

PROTOCOL_VERSION = 1
