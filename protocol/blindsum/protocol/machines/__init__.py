"""The three state machines of a round: device, party, coordinator (SPEC.md section 8)."""
