"""Validate files against a schema before they are loaded or consumed.

Data files are read in parts, by the code that loads and consumes them, so their size does not
matter and valid files are accepted there.
"""
