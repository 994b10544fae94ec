"""A schedule in one process: Prefect's server in a child process, and the deployment served from this one."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType
from pydantic import ValidationError

from flows.server import prefect_at_hand
from pipeline.errors import SettingsError


def serve_refresh(parameters: dict[str, Any], cron: str, timezone: str) -> None:
    """Refreshes on a schedule until it is interrupted; a run that is due while one is at work is left out.

    Args:
        parameters: of `flows.refresh.refresh`.
        cron: five fields; timezone: an IANA name.

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
        _serve(parameters, schedule)


def _serve(parameters: dict[str, Any], schedule: CronSchedule) -> None:
    from flows.refresh import refresh

    refresh.serve(
        "dvmset",
        parameters=parameters,
        schedules=[schedule],
        limit=1,
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        pause_on_shutdown=False,  # else the schedule is off after a restart
        print_starting_message=False,
        entrypoint_type=EntrypointType.MODULE_PATH,  # whatever folder the command is run in
    )
