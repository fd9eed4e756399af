"""Files against a schema, before anything reads them in earnest.

Data files are read a part at a time, by the code that loads and consumes them: so their size does
not matter, and what is valid here fits there.
"""
