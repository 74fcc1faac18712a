"""The commands of the command line; each gets the arguments that `__main__` has parsed.

They call the library and print. Each command itself imports what is slow to load."""
