"""How well a model does: metrics of the paper's tasks."""
