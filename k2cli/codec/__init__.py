"""Avro <-> RecordBatch, whole batches at a time."""
