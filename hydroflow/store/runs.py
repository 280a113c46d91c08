"""The record of a campaign as it was started, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydroflow.campaign import Campaign
from hydroflow.errors import CampaignError
from hydroflow.store.documents import Run, now


def open_run(campaign: Campaign) -> Run:
    """The run record of this campaign, made at the first call.

    Raises
    ------
    CampaignError
        when the campaign was started with other settings; the message names the keys that differ.
    """
    Run.objects(campaign=campaign.name).modify(
        upsert=True,
        set_on_insert__digest=campaign.digest(),
        set_on_insert__text=campaign.to_json(),
        set_on_insert__stage="new",
        set_on_insert__started=now(),
        set__updated=now(),
    )
    run = Run.objects.get(campaign=campaign.name)
    # key by key: a key that a newer hydroflow has added stands at its default in an older record
    if changed := campaign.changes(Campaign.from_json(run.text)):
        raise CampaignError(
            f"campaign {campaign.name!r} was started with other settings (changed: {', '.join(changed)}); put them back, or "
            "give the changed campaign a new name: finished jobs that both share are not computed again"
        )
    return run


def get_run(name: str) -> Run:
    """Record of a campaign by name; :class:`CampaignError` lists the known ones when it is not there."""
    run = Run.objects(campaign=name).first()
    if run is None:
        known = ", ".join(sorted(Run.objects.scalar("campaign"))) or "none"
        raise CampaignError(
            f"no campaign {name!r} was ever started here (known: {known}); start it with `hydroflow run FILE`"
        )
    return run


def set_stage(name: str, stage: str, message: str = "") -> None:
    Run.objects(campaign=name).update_one(set__stage=stage, set__message=message, set__updated=now())


def summarise(name: str, **values: Any) -> None:
    """Merge values into the run's summary (what the report and `hydroflow status` show)."""
    Run.objects(campaign=name).update_one(set__updated=now(), **{f"set__summary__{k}": v for k, v in values.items()})


def finish(name: str) -> None:
    Run.objects(campaign=name).update_one(
        set__stage="finished", set__message="", set__finished=now(), set__updated=now()
    )


@contextmanager
def timed_stage(name: str, stage: str) -> Iterator[None]:
    """Mark the stage as the current one and add its wall time to the record, however it ends."""
    set_stage(name, stage)
    started = time.monotonic()
    try:
        yield
    finally:
        Run.objects(campaign=name).update_one(**{f"inc__timings_s__{stage}": time.monotonic() - started})
