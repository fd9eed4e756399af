"""Shell completion, answered in a few milliseconds: imports the standard library and no more."""
