"""Kedro pipelines: each chains small nodes around the library modules of this package."""
