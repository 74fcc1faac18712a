"""Tests in a real browser. A package, so that its conftest does not apply to other tests."""
