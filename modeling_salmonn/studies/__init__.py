"""Studies of a trained model: sweeps, perplexity, attribution, windows, data."""
