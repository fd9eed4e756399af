"""Files -> tables, topics or stdout: which files, whether they are new, all or nothing of each."""
