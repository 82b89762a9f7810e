"""Kedro pipelines: each chains small nodes around the library modules of this package."""


def params(*names: str) -> list[str]:
    """Kedro's names of parameters, for a node's inputs."""
    return [f"params:{name}" for name in names]
