"""The report of a campaign: one self-contained HTML page, written from the records alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hydroflow.errors import SettingsError
from hydroflow.report.page import page
from hydroflow.report.records import ReportData, read
from hydroflow.report.table import cifs

if TYPE_CHECKING:
    from hydroflow.store import Store

__all__ = ["ReportData", "read", "write_report"]


def write_report(store: Store, campaign: str, path: str | Path) -> Path:
    """Write the page of a campaign; works at any stage of it.

    Parameters
    ----------
    store
        The open store; its documents are read, nothing is written.
    campaign
        Name of the campaign.
    path
        Where the page goes; replaced whole or not at all.

    Raises
    ------
    CampaignError, SettingsError
        when there is no such campaign, or the page cannot be written there.
    """
    data = read(store, campaign)
    html = page(data, cifs(campaign, data.rows, data.settings.funnel.symprec_a))
    path = Path(path).absolute()
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(html, "utf-8")
        half.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        raise SettingsError(f"{path}: cannot write the report: {error.strerror}") from error
    return path
