"""Schedules in one process: Prefect's server in a child process, and the deployments served from this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from pydantic import ValidationError

from flows.server import prefect_at_hand
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from prefect import Flow

HOURLY = "30 * * * *"


def serve_both(refreshed: dict[str, Any], watched: dict[str, Any], cron: str, timezone: str) -> None:
    """Refreshes on a schedule and asks for the canaries every hour, until it is interrupted.

    A run that is due while one of its kind is at work is left out.

    Args:
        refreshed, watched: parameters of `flows.refresh.refresh` and of `flows.canary.canary`.
        cron: of the refreshes, five fields; timezone: an IANA name.

    Raises:
        SettingsError: the cron line or the time zone can't be used.
        DvmsetError: the server can't be started.
    """
    try:
        schedule = CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise SettingsError(
            f"{cron!r} ({timezone}) is no schedule.", hint='Write five fields, such as "0 3 * * *", and Area/City.'
        ) from error
    with prefect_at_hand(schedules=True):
        from flows.canary import canary
        from flows.refresh import refresh

        served = [
            _deployment(refresh, "dvmset", refreshed, schedule),
            _deployment(canary, "canary", watched, CronSchedule(cron=HOURLY, timezone=timezone)),
        ]
        # Their schedules stay on when they end: else they would be off after a restart.
        serve(*served, pause_on_shutdown=False, print_starting_message=False, limit=len(served))


def _deployment(flow: Flow[..., Any], name: str, given: dict[str, Any], schedule: CronSchedule) -> RunnerDeployment:
    made = flow.to_deployment(
        name,
        parameters=given,
        schedules=[schedule],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        entrypoint_type=EntrypointType.MODULE_PATH,  # whatever folder the command is run in
    )
    assert isinstance(made, RunnerDeployment)  # not a coroutine: nothing here is one
    return made
