"""The four steps as plain functions: data in, data out."""
