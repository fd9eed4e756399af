"""`k2 schema`: one module per group of commands."""
