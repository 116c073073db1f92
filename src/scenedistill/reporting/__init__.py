"""Figures, explanations of single images, and HTML reports."""
