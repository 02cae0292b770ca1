"""Activation tuning, the third stage."""
