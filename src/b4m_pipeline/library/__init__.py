"""Many halves at once."""
