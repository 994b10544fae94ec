"""Where the tasks of a build run: in threads of this process, or on the workers of a Dask or Ray cluster.

    with started(profile) as runner:
        build.with_options(task_runner=runner)(...)

The profile's `run` says which. Without `run.address` a cluster is made on this machine for the block. Tasks with models
ask for GPUs (`asking`): of Dask, the resource `GPU` that workers are started with; of Ray, its own `num_gpus`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline import weights
from pipeline.config import Profile
from pipeline.errors import DvmsetError, SettingsError

START_S = 60  # a scheduler that doesn't answer within so many seconds isn't there


@contextmanager
def started(profile: Profile) -> Iterator[TaskRunner[Any]]:
    """The task runner that the settings ask for, with its cluster.

    Raises:
        SettingsError: a package is missing, or the workers couldn't reach Prefect's API.
        DvmsetError: no cluster answers there, or none of its workers has a GPU to give.
    """
    run = profile.run
    if run.runner == "threads":
        yield ThreadPoolTaskRunner(max_workers=profile.fetch.threads)
        return
    api = PREFECT_API_URL.value() or ""
    if not is_local(run.address) and is_local(api):
        raise SettingsError(
            f"The workers at {run.address} can't reach Prefect's API on this machine ({api or 'none is set'}).",
            hint="Start `prefect server start --host 0.0.0.0` and set PREFECT_API_URL to its address in the network.",
        )
    with _dask(profile) if run.runner == "dask" else _ray(profile) as runner:
        yield runner


@contextmanager
def asking(profile: Profile) -> Iterator[None]:
    """Tasks that are submitted in the block ask the cluster for GPUs, if the models' device is one."""
    share = gpus(profile)
    if not share:
        yield
    elif profile.run.runner == "dask":
        import dask

        with dask.annotate(resources={"GPU": share}):
            yield
    else:
        from prefect_ray.context import remote_options

        with remote_options(num_gpus=share):
            yield


def gpus(profile: Profile) -> float:
    """How many a task with models asks for; `auto` devices are those of this machine.

    Raises:
        SettingsError: a GPU is meant that isn't there.
    """
    if profile.run.gpus is not None:
        return profile.run.gpus
    devices = {room.device for room in (profile.separate, profile.vision, profile.codec)}
    return float(any(name.startswith("cuda") or weights.device(name).startswith("cuda") for name in devices))


def is_local(address: str) -> bool:
    """Whether an address is of this machine alone; an empty one is.

    >>> is_local("tcp://127.0.0.1:8786"), is_local("localhost:1"), is_local("auto"), is_local("tcp://10.0.0.7:8786")
    (True, True, True, False)
    """
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    if host in ("", "auto", "localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name


@contextmanager
def _dask(profile: Profile) -> Iterator[TaskRunner[Any]]:
    try:
        import distributed
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise _missing("dask", error) from error
    share, run = gpus(profile), profile.run
    with ExitStack() as stack:
        address = run.address
        if not address:
            local = distributed.LocalCluster(
                n_workers=run.workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                resources={"GPU": share} if share else None,
            )
            address = stack.enter_context(local).scheduler_address
        try:
            with distributed.Client(address, timeout=START_S, set_as_default=False) as client:
                workers = client.scheduler_info(n_workers=-1)["workers"].values()
        except OSError as error:
            raise _nobody("Dask scheduler", address, "dask scheduler", error) from error
        if share and workers and not any(worker["resources"].get("GPU", 0) >= share for worker in workers):
            raise DvmsetError(
                f"No Dask worker at {address} has {share:g} GPU to give.",
                hint="Start workers by `dask worker ... --resources GPU=1`, or set run.gpus=0.",
            )
        yield DaskTaskRunner(address=address)


@contextmanager
def _ray(profile: Profile) -> Iterator[TaskRunner[Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # calls nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leaves CUDA_VISIBLE_DEVICES alone
    try:
        import ray
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise _missing("ray", error) from error
    share, run = gpus(profile), profile.run
    own = {"num_cpus": run.workers, "include_dashboard": False}
    try:
        ray.init(**({"address": run.address} if run.address else own), log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise _nobody("Ray cluster", run.address, "ray start --head", error) from error
    try:
        if share > ray.cluster_resources().get("GPU", 0):
            raise DvmsetError(
                f"The Ray cluster at {run.address or 'this machine'} has no {share:g} GPU to give.",
                hint="Start a node with `--num-gpus`, or set run.gpus=0.",
            )
        yield RayTaskRunner()
    finally:
        ray.shutdown()


def _missing(extra: str, error: ImportError) -> SettingsError:
    return SettingsError(
        f"run.runner={extra} needs a package that is missing here ({error.name}).",
        hint=f"Run `pip install 'dvmset[{extra}]'`.",
    )


def _nobody(what: str, address: str, command: str, error: Exception) -> DvmsetError:
    return DvmsetError(f"No {what} answers at {address}: {error}.", hint=f"Start one with `{command}`.")
