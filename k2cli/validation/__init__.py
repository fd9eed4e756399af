"""Validate files against a schema before they are loaded or consumed, and schemas themselves.

Data files are read in parts, by the code that loads and consumes them, so their size does not
matter and valid files are accepted there. Schemas are checked against others, subjects and tables.
"""
