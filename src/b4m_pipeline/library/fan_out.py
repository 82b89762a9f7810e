"""Independent jobs one after another in this process, or at once on a Ray cluster."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from b4m_pipeline.library.params import RayParams

logger = logging.getLogger(__name__)
Job = TypeVar("Job")
Result = TypeVar("Result")


class FanOutError(ValueError):
    """Ray is not installed, its cluster cannot be reached, or it cannot be used with these settings."""


def run_jobs(
    function: Callable[..., Result],
    jobs: Sequence[Job],
    shared: Any,
    ray_params: RayParams | None,
    failed: Callable[[Job, str], Result],
) -> list[Result]:
    """function(job, shared) for every job; results in the jobs' order.

    ray_params None: one after another, here. Otherwise each is a Ray task with the stated resources, tried again as often as
    stated if its worker dies. failed: what stands for a job whose worker died once too often, given it and the reason. The
    function must be importable where the workers are, and its arguments plain data.
    """
    if ray_params is None:
        return [function(job, shared) for job in jobs]
    ray = start_ray(ray_params)
    task = ray.remote(num_cpus=ray_params.cpus, num_gpus=ray_params.gpus, max_retries=ray_params.retries)(function)
    place = ray.put(shared)
    references = [task.remote(job, place) for job in jobs]
    results = []
    for job, reference in zip(jobs, references, strict=True):
        try:
            results.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            logger.error("A worker was lost for good: %s", error)
            results.append(failed(job, str(error).strip().splitlines()[0]))
    return results


def start_ray(params: RayParams) -> Any:
    """Ray's module, connected to the cluster at `params.address`, or to one on this machine with `params.workers` workers.
    Raises FanOutError."""
    try:
        import ray
    except ImportError as error:
        raise FanOutError(
            'library.ray needs the package ray, which is not installed: pip install ray, or pip install -e ".[ray]", or set '
            "library.ray to null"
        ) from error
    if ray.is_initialized():
        return ray
    try:
        if params.address:
            ray.init(address=params.address, logging_level=logging.WARNING)
        else:
            cpus = max(1, round(params.workers * params.cpus))
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = params.address or "this machine"
        raise FanOutError(f"library.ray.address: no Ray cluster answers at {where}: {error}") from error
    return ray


def check_store(uri: str, params: RayParams | None) -> None:
    """Raise FanOutError if a cluster's workers could not reach the tracking store."""
    if params and params.address and not uri.startswith(("http://", "https://", "databricks")):
        raise FanOutError(
            f"library.ray.address is {params.address}, and MLflow's store is {uri}, which other machines cannot reach: start "
            "`mlflow server`, and set MLFLOW_TRACKING_URI to its http address"
        )
