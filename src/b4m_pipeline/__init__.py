"""Break-for-Make: content and style adapters that do not bleed into each other."""

__version__ = "0.1.0"
