"""`hydroflow tc` and `hydroflow epc`: Tc from files, and the protocols and results of the EPC chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


class _Floats(click.Command):
    """Lets ``--mu-star 0.10 0.15`` take several values, as well as ``--mu-star 0.10 --mu-star 0.15``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        out: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            out.append(word)
            if word == "--mu-star" and rest:
                out.append(rest.pop(0))
                while rest and _is_number(rest[0]) and not Path(rest[0]).exists():
                    out += ["--mu-star", rest.pop(0)]
        return super().parse_args(ctx, out)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@click.command(cls=_Floats)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--unit", default="auto", show_default=True, help="Unit of the frequencies: auto, Ry, Ha, THz, meV, cm-1, K.")
@click.option("--mu-star", "mu_stars", type=float, multiple=True, default=(0.10, 0.15), show_default=True,
              help="Coulomb pseudopotentials.")
@click.option("--method", type=click.Choice(["all", "mcmillan", "allen_dynes", "eliashberg"]), default="all", show_default=True)
@click.option("--unscaled", is_flag=True, help="In the Eliashberg equation, take mu* for the value at a Matsubara cutoff of 10 "
              "times the highest phonon frequency, not for that at the highest phonon frequency itself.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def tc(file: Path, unit: str, mu_stars: tuple[float, ...], method: str, unscaled: bool, as_json: bool) -> None:
    """Tc from FILE: an alpha2F file (QE, EPW, Elk, ABINIT, text) or a folder of ph.x couplings."""
    from hydroflow.epc.analysis import analyse, doubts, find_plateau, mu_key, reported
    from hydroflow.epc.eliashberg import LOWEST_TC
    from hydroflow.epc.formulas import METHODS, mcmillan
    from hydroflow.epc.readers import read_a2f
    from hydroflow.errors import SettingsError

    keys = [mu_key(mu) for mu in mu_stars]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise SettingsError(f"--mu-star names {repeated[0]} twice (to six digits): give each value once")
    methods = METHODS if method == "all" else (method,)
    source = read_a2f(file, unit)
    rows = analyse(source.spectra, mu_stars, methods, scaled=not unscaled)
    # broadenings of the phonons (EPW) are no convergence parameter of lambda: only named electronic ones have a plateau
    electronic = all(r["sigma_ry"] is not None for r in rows)
    plateau = find_plateau([r["sigma_ry"] for r in rows], [r["lambda"] for r in rows]) if electronic else None
    chosen = reported(rows, plateau) if electronic else 0
    warnings = source.warnings + doubts(rows, plateau, chosen)
    if too_low := [key for key, mu in zip(keys, mu_stars, strict=True) if any(
            r["tc_k"][key].get("eliashberg") == 0 and mcmillan(r["lambda"], r["omega_log_k"], mu) > 0 for r in rows)]:
        lowest_k = LOWEST_TC * max(s.coupling.max_k for s in source.spectra)
        warnings.append(f"Eliashberg: a Tc of zero (mu* = {', '.join(too_low)}) means none above {lowest_k:.2g} K; lower ones "
                        "are not looked for")
    if as_json:
        click.echo(json.dumps({
            "file": str(file), "format": source.format, "unit": source.unit,
            "mu_star_convention":
                "at ten times the highest phonon frequency (unscaled)" if unscaled
                else "at the highest phonon frequency (scaled)",
            **_public(rows[chosen], methods),
            "broadenings": [_public(r, methods) for r in rows],
            "plateau": None if plateau is None else {
                "sigma_ry": rows[plateau.index]["sigma_ry"], "spread": plateau.spread, "flat": plateau.flat},
            "warnings": warnings}, indent=1))
        return
    click.echo(f"{file}: {source.format}, frequencies in {source.unit}")
    head = f"{'sigma/Ry':>9} {'lambda':>8} {'wlog/K':>8} {'w2/K':>8}"
    columns = [(m, mu) for m in methods for mu in mu_stars]
    short = {"mcmillan": "McM", "allen_dynes": "AD", "eliashberg": "Eli"}
    click.echo(head + "".join(f"{short[m] + ' ' + mu_key(mu):>10}" for m, mu in columns) + "   (Tc/K at mu*)")
    for i, r in enumerate(rows):
        sigma = "-" if r["sigma_ry"] is None else f"{r['sigma_ry']:.4f}"
        mark = "" if i != chosen or len(rows) == 1 else " <- plateau" if plateau and plateau.flat else " <- reported, no plateau"
        click.echo(f"{sigma:>9} {r['lambda']:8.4f} {r['omega_log_k']:8.1f} {r['omega2_k']:8.1f}"
                   + "".join(f"{r['tc_k'][mu_key(mu)][m]:10.2f}" for m, mu in columns) + mark)
    if "eliashberg" in methods:
        click.echo("Eli: mu* is the value at " + (
            "ten times the highest phonon frequency, taken as it is at that Matsubara cutoff (--unscaled)" if unscaled else
            "the highest phonon frequency, scaled to the Matsubara cutoff; --unscaled takes it as it is"))
    for w in warnings:
        click.echo(f"warning: {w}", err=True)


def _public(row: dict[str, Any], methods: tuple[str, ...]) -> dict[str, Any]:
    """A row with the keys of the command's JSON: tc_K.{method}.{μ*}."""
    return {"sigma_ry": row["sigma_ry"], "lambda": row["lambda"], "omega_log_K": row["omega_log_k"], "omega2_K": row["omega2_k"],
            "tc_K": {m: {mu: values[m] for mu, values in row["tc_k"].items()} for m in methods}}


@click.group()
def epc() -> None:
    """Electron–phonon coupling: protocols and results."""


@epc.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list on standard output.")
def protocols(as_json: bool) -> None:
    """The named settings of the chain."""
    from dataclasses import asdict

    from hydroflow.epc.protocols import names, protocol

    every = [asdict(protocol(name)) for name in names()]
    if as_json:
        click.echo(json.dumps(every, indent=1))
        return
    for p in every:
        click.echo(f"{p.pop('name')}: {p.pop('description')}")
        click.echo("    " + ", ".join(f"{k} = {v:g}" for k, v in p.items()))


@epc.command()
@click.argument("campaign")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR",
              help="Folder that the figures go into.")
@click.option("--formula", help="Only candidates of this reduced formula.")
@click.option("--format", "suffix", type=click.Choice(["svg", "pdf", "png"]), default="svg", show_default=True)
def plot(campaign: str, output: Path, formula: str | None, suffix: str) -> None:
    """Draw every finished EPC result of CAMPAIGN (name or file): α²F with λ(ω), Tc against σ and μ*, and the dispersion with the
    coupling of each mode where the chain computed it."""
    from hydroflow.cli.common import campaign_name
    from hydroflow.epc.plots import write
    from hydroflow.errors import UserError
    from hydroflow.screening import listing
    from hydroflow.store import open_store
    from hydroflow.store.runs import get_run

    store = open_store()
    name = get_run(campaign_name(campaign)).campaign
    # a listing leaves the whole result out
    found = list(listing.find(name, epc_status="done", formula=formula).all_fields().order_by("-tc_k"))
    if not found:
        raise UserError(f"campaign {name} has no finished EPC result{f' of {formula}' if formula else ''}; see "
                        f"hydroflow candidates {name} --epc-status done")
    for c in found:
        spectra = json.loads(store.objects.get(c.epc["spectra"]))
        for path in write(c.epc, spectra, output, f"{c.formula}-{c.spacegroup}-{c.structure_id[:8]}", suffix):
            click.echo(path)


@epc.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--compound", "only", multiple=True, help="Only this compound; may be given several times.")
@click.option("--rungs", type=click.IntRange(min=1), help="Only the first so many rungs.")
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), help="data directory")
@click.option("--figures", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Write the figures of every finished rung there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list on standard output.")
def ladder(
    file: Path, only: tuple[str, ...], rungs: int | None, home: Path | None, figures: Path | None, as_json: bool,
) -> None:
    """Run the convergence ladder of FILE, or go on with it; prints λ, ω_log and Tc per rung beside the literature.

    Needs the services (`hydroflow services up`) and an agent (`hydroflow agent`).
    """
    from dataclasses import replace

    from hydroflow.arrays import StructureArrays
    from hydroflow.campaign import Labels
    from hydroflow.dft.batch import relax_specs, relaxed_structures, stored_pseudos
    from hydroflow.dft.settings import label_settings
    from hydroflow.dispatch.job import Resources
    from hydroflow.dispatch.ledger import Ledger
    from hydroflow.epc.chain import run_chain
    from hydroflow.epc.ladder import load_ladder, not_relaxed, table
    from hydroflow.epc.plots import write
    from hydroflow.errors import SettingsError
    from hydroflow.settings import ServiceSettings
    from hydroflow.store import open_store

    wanted = load_ladder(file)
    unknown = set(only) - {c.name for c in wanted.compounds}
    if unknown:
        raise SettingsError(f"{file} has no compound {', '.join(sorted(unknown))}")
    wanted = replace(wanted, rungs=wanted.rungs[:rungs],
                     compounds=[c for c in wanted.compounds if not only or c.name in only])
    structures = wanted.structures()
    # a compound's own cutoffs, so that its jobs are the same ones whatever else is asked for
    labels = Labels(protocol=wanted.labels, pseudos=wanted.pseudos)
    settings = [label_settings(labels, sorted(c)) for c in structures.compositions()]
    with open_store(ServiceSettings.from_environment(home=home)) as store:
        jobs = Ledger(store)
        unrelaxed: dict[int, dict[str, Any]] = {}
        if wanted.relax:
            specs = [s for i in range(len(structures)) for s in relax_specs(
                store, structures[i], settings[i], float(structures.columns["pressure_gpa"][i]),
                resources=Resources(wanted.cores, 0, wanted.wall_time_s), label="ladder relax")]
            done = jobs.wait(jobs.submit(specs, "epc-ladder"),
                             lambda counts: click.echo(f"relax: {counts.get('done', 0)} of {len(specs)} jobs", err=True))
            parts = [relaxed_structures(store, [job]) for job in done]
            for i, (part, job) in enumerate(zip(parts, done, strict=True)):
                if len(part):
                    part.columns["id"] = structures.columns["id"][i:i + 1]
                else:
                    unrelaxed[i] = not_relaxed(job.failure, (job.cost or {}).get("core_hours") or 0.0)
            structures = StructureArrays.concatenate(parts)
        here = [i for i in range(len(wanted.compounds)) if i not in unrelaxed]
        cutoffs = [{"ecutwfc_ry": settings[i].ecutwfc_ry, "ecutrho_ry": settings[i].ecutrho_ry} for i in here]
        pseudos = {element: digest for s in settings for element, digest in stored_pseudos(store, s).items()}
        results = []
        for rung in wanted.rungs:
            def told(counts: dict[str, int], name: str = rung.name) -> None:
                click.echo(f"{name}: {counts['done'] + counts['failed']} of {counts['crystals']} crystals, "
                           f"{counts['jobs_done']} of {counts['jobs']} jobs", err=True)

            found = run_chain(jobs, store, structures, pseudos, cutoffs, settings[0].engine, rung, wanted.mu_star, "epc-ladder",
                              wanted.cores, told, wall_time_s=wanted.wall_time_s)
            by_compound = {**unrelaxed, **dict(zip(here, found, strict=True))}
            results.append([by_compound[i] for i in range(len(wanted.compounds))])
            if figures is not None:
                for c, result in zip(wanted.compounds, results[-1], strict=True):
                    if result["status"] == "done":
                        write(result, json.loads(store.objects.get(result["spectra"])), figures,
                              f"{c.name}-{rung.name.replace(' ', '-')}")
    rows = table(wanted, results)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    _print_ladder(rows)


def _convergence(row: dict[str, Any]) -> str:
    """Whether a rung has converged, and by which rungs; of a mesh, what is missing."""
    if not row["usable"]:
        return "not converged: not usable"
    steps = {mesh.removesuffix("_mesh"): step for mesh, step in row["steps"].items()}
    missing = [mesh for mesh, step in steps.items() if step is None]
    if missing:
        return f"not converged: no usable rung is coarser in {' or '.join(missing)} without being denser in the other mesh"
    moved = list(dict.fromkeys(f"λ {step['lambda']:+.0%} and ω_log {step['omega_log_k']:+.0%} from {step['rung']}"
                               for step in steps.values() if step))
    return (f"{'converged' if row['converged'] else 'not converged'}: {', '.join(moved)}"
            + (" (q and k in one step)" if len(moved) == 1 else ""))


def _print_ladder(rows: list[dict[str, Any]]) -> None:
    from hydroflow.epc.ladder import PUBLISHED

    wide, name = (max([least, *(len(r[key]) + 2 for r in rows)]) for key, least in (("compound", 10), ("rung", 14)))
    click.echo(f"{'compound':<{wide}}{'rung':<{name}}{'q':<8}{'k':<10}{'λ':>6}{'ω_log/K':>9}{'Tc AD/K':>9}{'core-h':>8}"
               "  verdict")
    for r in rows:
        mesh = "×".join(map(str, r["q_mesh"] or [])), "×".join(map(str, r["k_mesh"] or []))
        start = f"{r['compound']:<{wide}}{r['rung']:<{name}}{mesh[0]:<8}{mesh[1]:<10}"
        if r["status"] != "done":
            click.echo(f"{start}{'':>24}{r['core_hours']:8.2f}  failed: {(r['failure'] or {}).get('message', '')}")
            continue
        tc_k = next(iter(r["tc_k"].values()))["allen_dynes"]
        click.echo(f"{start}{r['lambda']:6.2f}{r['omega_log_k']:9.0f}{tc_k:9.0f}{r['core_hours']:8.2f}  {_convergence(r)}")
        click.echo("    λ(σ/Ry): " + ", ".join(f"{lam:.2f} ({sigma:g})" for sigma, lam, _ in r["sigmas"]))
        if rescaled := r["rescaled"]:
            fine, rough = ("×".join(map(str, rescaled[key])) for key in ("mesh", "rough_mesh"))
            tc_k, plateau = next(iter(rescaled["tc_k"].values()))["allen_dynes"], rescaled["plateau"]
            varies = f", varies by {plateau['spread']:.0%} from {plateau['first']:g} to {plateau['last']:g}" if plateau else ""
            click.echo(f"    λ at N(E_F) by tetrahedra, {rescaled['dos']:.2f} on {fine}, {rescaled['rough_dos']:.2f} on {rough}: "
                       f"{rescaled['lambda']:.2f} ({rescaled['sigma_ry']:g}), Tc AD {tc_k:.0f} K{varies}")
            click.echo("    N(E) from E_F (eV): " + ", ".join(
                f"{n:.2f} ({e:+g})" for e, n in zip(rescaled["offsets_ev"], rescaled["dos_near"], strict=True)))
        for known in r["references"]:
            values = ", ".join(f"{words.format(known[key])} ({known['off'][key]:+.0%})"
                               for key, words in PUBLISHED.items() if key in known)
            click.echo(f"    {'within' if known['agrees'] else 'not within'} 15 % of {values}: {known['source']}")
            if at_fermi := known.get("at_fermi"):
                values = ", ".join(f"{words.split(' {')[0]} {at_fermi['off'][key]:+.0%}"
                                   for key, words in PUBLISHED.items() if key in known)
                click.echo(f"        at N(E_F) by tetrahedra {'within' if at_fermi['agrees'] else 'not within'} 15 %: {values}")
        if r["reasons"]:
            click.echo("    not usable: " + "; ".join(r["reasons"]))
