"""Iceberg: catalog, tables, the exactly-once append, maintenance. pyiceberg lives only here."""
