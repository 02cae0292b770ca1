"""Rows, examples, batches: what training and evaluation read."""
