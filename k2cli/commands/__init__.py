"""The command line: parse, call one function, print. Typer and Rich live only here."""
