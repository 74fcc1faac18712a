"""Rounds in a run folder: settings, stages, resume."""
