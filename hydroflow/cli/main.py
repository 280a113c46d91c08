"""The `hydroflow` command: subcommands are imported only when they are called, so that `--help` is instant."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click

from hydroflow import __version__
from hydroflow.errors import HydroflowError

COMMANDS = {
    # name: (module:attribute, one line of help)
    "campaign": ("hydroflow.cli.campaign:campaign", "Check a campaign file and say what it would do."),
    "run": ("hydroflow.cli.run:run", "Run a campaign, or go on with one that was interrupted."),
    "status": ("hydroflow.cli.run:status", "Where a campaign stands."),
    "candidates": ("hydroflow.cli.candidates:candidates", "List candidate hydrides from MongoDB."),
    "report": ("hydroflow.cli.report:report", "Write the campaign's report as one HTML page."),
    "services": ("hydroflow.cli.services:services", "Start, stop and show the embedded services."),
    "agent": ("hydroflow.cli.jobs:agent", "Run jobs on the clusters (long-lived process)."),
    "jobs": ("hydroflow.cli.jobs:jobs", "List, show, retry and cancel jobs; what they cost."),
    "clusters": ("hydroflow.cli.jobs:clusters", "Check the clusters that jobs run on."),
    "storage": ("hydroflow.cli.storage:storage", "Verify and clean the object store."),
    "chemspace": ("hydroflow.cli.structures:chemspace", "Enumerate the compositions of a campaign."),
    "generate": ("hydroflow.cli.structures:generate", "Generate random symmetric structures into a Parquet shard."),
    "structures": ("hydroflow.cli.structures:structures", "Statistics of and queries over structures."),
    "screen": ("hydroflow.cli.screening:screen", "The screening funnel, with what-if thresholds."),
    "datasets": ("hydroflow.cli.lam:datasets", "List, show, export and import labelled datasets."),
    "models": ("hydroflow.cli.lam:models", "List, show, test and export models."),
    "learning": ("hydroflow.cli.learning:learning", "Iterations of the concurrent learning."),
    "dft": ("hydroflow.cli.dft:dft", "DFT protocols and comparisons."),
    "pseudos": ("hydroflow.cli.dft:pseudos", "Install and verify pseudopotential families."),
    "epc": ("hydroflow.cli.epc:epc", "Electron–phonon protocols and results."),
    "tc": ("hydroflow.cli.epc:tc", "Tc from an α²F file."),
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hydroflow")
def cli() -> None:
    """Discover superconducting hydrides: learn a Large Atomic Model, search, screen, compute Tc.

    First hour: `hydroflow services up`, `hydroflow campaign check FILE`, `hydroflow run FILE`, `hydroflow candidates FILE`.
    """


def main() -> None:
    """Entry point: an error of ours is one line on stderr and exit code 2, never a traceback."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    except HydroflowError as error:
        click.echo(f"hydroflow: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.EPIPE:  # `… | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if error.errno not in _FILES:
            raise
        where = f": {error.filename}" if error.filename else ""
        click.echo(f"hydroflow: {error.strerror}{where}; {_FILES[error.errno]}: the same command goes on from here", err=True)
        sys.exit(2)
    except Exception as error:
        lost = _lost_service(error)
        if not lost:
            raise
        click.echo(f"hydroflow: {lost}; start it again (`hydroflow services up`, or whoever runs yours): the same command goes "
                   "on from here", err=True)
        sys.exit(2)


_FILES = {
    errno.ENOSPC: "free some space, or choose another HYDROFLOW_HOME",
    errno.EDQUOT: "your quota is used up: free some space, or choose another HYDROFLOW_HOME",
    errno.EACCES: "check its owner and mode, or choose another folder",
    errno.EROFS: "choose another folder",
}
"""What to do about files that cannot be written, by the error of the system."""


_OUT_OF_DISK = 14031
"""MongoDB's error code OutOfDiskSpace."""


def _lost_service(error: Exception) -> str:
    """What to say when a service went away in the middle of a command; empty for other errors."""
    import httpx  # Prefect's client; loaded here only, since `--help` needs neither
    from pymongo.errors import ConnectionFailure, OperationFailure

    if isinstance(error, ConnectionFailure):
        return "MongoDB does not answer any more"
    if isinstance(error, OperationFailure) and error.code == _OUT_OF_DISK:
        return "the disk of MongoDB is full: free some space there"
    if isinstance(error, httpx.TransportError):
        return "the Prefect server does not answer any more"
    return ""
