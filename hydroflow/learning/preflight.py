"""What would stop a campaign, found before anything is computed."""

from __future__ import annotations

import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path

from hydroflow.campaign import Campaign, Cluster
from hydroflow.dft.protocol import load_protocol
from hydroflow.dft.settings import campaign_settings, epc_settings
from hydroflow.epc.protocols import protocol as epc_protocol
from hydroflow.errors import CampaignError, ServiceError, SettingsError
from hydroflow.screening.filters import thresholds
from hydroflow.structures.generate import generator_for


def check_names(campaign: Campaign) -> None:
    """Every protocol, generator and filter that the campaign names exists, on whatever machine it will run.

    Raises
    ------
    SettingsError, CampaignError
        one line: the name and what is known.
    """
    load_protocol(campaign.labels.protocol)
    epc_protocol(campaign.epc.protocol)
    for name in campaign.generator.mix:
        generator_for(name)
    thresholds(campaign.funnel)
    if campaign.generator.mix.get("calypso") and not campaign.generator.calypso_command:
        raise CampaignError("generator.mix names calypso: set generator.calypso_command to the command line of your calypso.x")


PROGRAMS = {
    "qe": {"dft.label": ["pw.x"], "dft.dos": ["projwfc.x"], "epc.irreps": ["ph.x"], "epc.q": ["ph.x"], "epc.dos": ["dos.x"],
           "epc.collect": ["q2r.x", "matdyn.x"]},
    "vasp": {"vasp.label": ["vasp_std"], "dft.dos": ["pw.x", "projwfc.x"], "epc.irreps": ["ph.x"], "epc.q": ["ph.x"],
             "epc.dos": ["dos.x"], "epc.collect": ["q2r.x", "matdyn.x"]},
}
"""Label engine → kind of job → the programs that a campaign comes to need for it, the last of them hours after its start."""


LEAST_DISK = 100 << 20
"""Bytes: less is not enough for the folder of one DFT job."""


def check_here(campaign: Campaign) -> None:
    """Label engine, pseudopotentials of labels and EPC, and every program that this machine's own clusters will call.

    Programs of clusters with `setup` lines (modules) and of remote ones are left to ``hydroflow clusters check``.

    Raises
    ------
    SettingsError
        one line: what is missing.
    """
    campaign_settings(campaign)
    epc_settings(campaign)
    here = [c for c in campaign.clusters.values() if c.context == "local" and c.batch == "Shell" and not c.setup]
    for kind, programs in PROGRAMS[campaign.labels.engine].items():
        takers = [c for c in campaign.clusters.values() if any(fnmatch(kind, pattern) for pattern in c.kinds)]
        if not takers or any(c not in here for c in takers):
            continue
        for program in programs:
            if not any(_found(cluster, program) for cluster in takers):
                raise SettingsError(f"{program}, which {kind} jobs need, was not found; install it (Debian: `apt install "
                                    "quantum-espresso`) or give its command line under clusters.NAME.executables")


def _found(cluster: Cluster, program: str) -> bool:
    words = shlex.split(cluster.executables.get(program, program).replace("{cores}", "1"))
    return bool(words) and shutil.which(words[0]) is not None


def check_disk(home: Path) -> None:
    """Room for job folders on the disk of the data directory; :class:`ServiceError` where there is next to none."""
    there = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < LEAST_DISK:
        raise ServiceError(f"the disk of {home} is full ({free / 1e6:.0f} MB free): free some space, or choose another "
                           "HYDROFLOW_HOME")


def missing_here(campaign: Campaign) -> str | None:
    """What :func:`check_here` finds missing, in words; None when nothing is."""
    try:
        check_here(campaign)
    except SettingsError as error:
        return str(error)
    return None
