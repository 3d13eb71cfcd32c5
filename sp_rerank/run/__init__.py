"""The run folder: its records, reading and verifying it, writing and resuming it."""
