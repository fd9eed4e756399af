"""Query the data files of a plan with DuckDB."""
