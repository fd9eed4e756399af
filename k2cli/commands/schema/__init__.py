"""`k2 schema`: one module for each group of its commands."""
