"""What is drawn and how it is judged."""
