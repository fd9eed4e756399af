"""Avro schemas as such: their meaning, compatibility and differences. No I/O."""
