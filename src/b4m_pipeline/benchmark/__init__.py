"""Other methods and ours on the same pairs."""
