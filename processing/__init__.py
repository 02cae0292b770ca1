"""Audio and text in: reading audio, features of both encoders, prompts."""
