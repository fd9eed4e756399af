"""Consume topics into their tables exactly once, with any number of processes."""
