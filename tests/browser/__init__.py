"""Tests in a real browser. A package, so that its conftest is not that of all tests."""
