"""Base-model families, their loss and how they draw."""
