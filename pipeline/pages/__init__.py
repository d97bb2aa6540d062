"""Plots, the report and the other HTML pages."""
