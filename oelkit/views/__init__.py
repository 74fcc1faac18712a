"""Figures, the report and the widgets."""
