"""Break-for-Make itself: frame, halves, preconditioner; knows linear layers and nothing of data or training."""
