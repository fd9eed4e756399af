"""Shell completion in a few milliseconds: imports only the standard library."""
