"""Load files into tables, topics or stdout: only new files, each completely or not at all."""
