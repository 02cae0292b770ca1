"""The three-stage recipe: pre-training, instruction tuning and activation tuning (paper, section 3.3)."""
