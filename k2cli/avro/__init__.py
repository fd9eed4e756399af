"""Avro schemas as such: what they mean, whether they fit each other, how they differ. No I/O."""
