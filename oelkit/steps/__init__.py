"""The four steps, plain functions: data in, data out."""
