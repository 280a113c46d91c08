"""What would stop a campaign, found before anything is computed."""

from __future__ import annotations

from hydroflow.campaign import Campaign
from hydroflow.dft.protocol import load_protocol
from hydroflow.dft.settings import campaign_settings
from hydroflow.epc.protocols import protocol as epc_protocol
from hydroflow.errors import CampaignError, SettingsError
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


def missing_here(campaign: Campaign) -> str | None:
    """What this machine lacks to run the campaign (label engine, pseudopotentials), in words; None when nothing does."""
    try:
        campaign_settings(campaign)
    except SettingsError as error:
        return str(error)
    return None
