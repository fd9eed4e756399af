"""Pipelines that move records: stream, load, produce, consume and export, and their sinks."""
