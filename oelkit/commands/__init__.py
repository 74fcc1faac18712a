"""The commands of the command line; each gets the arguments that `__main__` has parsed.

They call the library and print. Each command imports the libraries that it needs."""
