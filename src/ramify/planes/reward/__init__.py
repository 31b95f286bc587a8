"""The reward plane: how it is scored."""
