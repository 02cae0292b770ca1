"""Serving a model to others."""
