"""Studies of a trained model: sweeps, perplexity, windows, data."""
