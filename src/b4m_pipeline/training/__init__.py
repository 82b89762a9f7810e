"""The training loop and the three stages."""
