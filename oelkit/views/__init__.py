"""Figures, the report and the widgets. They only read and show."""
