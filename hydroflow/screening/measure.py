"""The paper's five filters and what filters measure on: hull distance and symmetry at once, phonons and DFT through the job
ledger."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import Ledger
from hydroflow.errors import DataError
from hydroflow.screening.atomic_hydrogen import atomic_fraction
from hydroflow.screening.dft_hull import dft_distances
from hydroflow.screening.entries import element_sets, named
from hydroflow.screening.filters import Filter, Measured, above, at_least, at_most, filters_of
from hydroflow.screening.hull import Hull, distances, hulls_of
from hydroflow.screening.records import structure_blob
from hydroflow.store import Store
from hydroflow.store.documents import Candidate, Iteration, Job
from hydroflow.structures.symmetry import spacegroups

TIGHT = 0.2
"""Robustness of a space group: it is found again with this share of the tolerance, and what that gives is recorded."""
PHONON_JOBS = 16
"""Phonons are spread over about so many jobs, within the limits on structures per job below."""
PHONONS_PER_JOB = (4, 64)
"""Fewer would spend their time on loading the model, more would lose too much when one is killed."""


class Screening:
    """What the filters work on: all relaxed structures of a search, and the hull that they make.

    Attributes
    ----------
    candidates : (c,) int
        Rows of the ternaries A–B–H.
    hulls : dict
        Set of elements → hull by the model.
    ehull_ev : (n,)
        Distance of every structure above the hull of its own system, eV/atom.
    """

    def __init__(
        self, campaign: Campaign, store: Store, ledger: Ledger, structures: StructureArrays, model_digest: str,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.campaign, self.store, self.ledger = campaign, store, ledger
        self.structures, self.model_digest, self.progress = structures, model_digest, progress
        self.pressure_gpa = campaign.pressure.campaign_gpa
        if not len(structures):
            raise DataError("the search brought back no structure to screen; see why its shards failed (`hydroflow jobs list`)")
        self.ids = structures.columns["id"]
        if len(np.unique(self.ids.astype(str))) != len(structures):
            raise DataError("structures to screen have ids that are not unique")
        pressure = structures.columns.get("pressure_gpa", np.full(len(structures), self.pressure_gpa))
        wrong = np.abs(pressure - self.pressure_gpa) > 1e-3
        if wrong.any():
            raise DataError(f"structures {named(self.ids[wrong])} were not relaxed at the campaign's {self.pressure_gpa:g} GPa")
        self.hulls: dict[frozenset[str], Hull] = hulls_of(structures, self.pressure_gpa, model_digest)
        self.ehull_ev = distances(structures, self.hulls)
        self.candidates = self._ternaries()

    def _ternaries(self) -> np.ndarray:
        found, index = element_sets(self.structures)
        wanted = [len(s) == 3 and "H" in s and set(s) <= {"H", *self.campaign.space.elements} for s in found]
        for s, is_wanted in zip(found, wanted, strict=True):
            if is_wanted and frozenset(s) not in self.hulls:
                there = {e[0] for e in found if len(e) == 1}
                raise DataError(f"the search has no {', '.join(sorted(set(s) - there))} for the hull of {'-'.join(s)}: set "
                                "space.references = true, or look at why those shards failed (`hydroflow jobs list`)")
        return np.flatnonzero(np.array(wanted, bool)[index]) if len(found) else np.zeros(0, np.int64)

    @cached_property
    def model_error_ev(self) -> float:
        """Standard error of the model's enthalpies, eV/atom: the last comparison with DFT on relaxed structures; NaN
        where the campaign has none."""
        turns = Iteration.objects(campaign=self.campaign.name, stage="stage2").order_by("-index")
        for turn in turns:
            value = (turn.errors or {}).get("enthalpy_mev_atom")
            if value is not None:
                return float(value) / 1000
        return float("nan")

    @cached_property
    def stored_verdicts(self) -> dict[str, list[dict[str, Any]]]:
        """Verdicts of candidates that an earlier screening with this model brought to a filter that needs jobs, by
        structure id."""
        collection = self.store.database[Candidate._get_collection_name()]
        paid = [f.name for f in filters_of(self.campaign.funnel)[1:] if f.structural is None]
        match = {"campaign": self.campaign.name, "model": self.model_digest, "verdicts.filter": {"$in": paid}}
        return {d["structure_id"]: list(d["verdicts"]) for d in collection.find(match, {"structure_id": 1, "verdicts": 1})}

    def known_values(self, name: str, settings: str) -> dict[str, float]:
        """Values of a filter that are stored with these very settings, by structure id: of this campaign, and of others that
        screened the same structures (the same rows of the same shards), as one with other thresholds does."""
        structures = self.structures.columns
        places = zip(structures["shard"].tolist(), structures["row"].tolist(), strict=True) if "shard" in structures else ()
        id_at = dict(zip(places, self.ids.astype(str).tolist(), strict=False))
        collection = self.store.database[Candidate._get_collection_name()]
        match = {"campaign": {"$ne": self.campaign.name}, "model": self.model_digest, "verdicts.filter": name}
        others = {id_at[d["shard"], d["row"]]: d["verdicts"]
                  for d in collection.find(match, {"shard": 1, "row": 1, "verdicts": 1})
                  if (d.get("shard"), d.get("row")) in id_at}
        return {i: v["value"] for i, verdicts in (*others.items(), *self.stored_verdicts.items()) for v in verdicts
                if v["filter"] == name and v.get("settings") == settings and v.get("value") is not None}

    def run(self, specs: list[JobSpec], what: str) -> list[Job]:
        """Ask the ledger and wait; documents in the order of `specs`."""
        if not specs:
            return []
        keys = self.ledger.submit(specs, self.campaign.name)
        total = len(set(keys))

        def tell(counts: dict[str, int]) -> None:
            self.progress(what, sum(counts.get(s, 0) for s in ("done", "failed", "quarantined", "cancelled")), total)

        return self.ledger.wait(keys, on_progress=tell)


def failure(job: Job) -> str:
    """Why a job has no answer, in one line."""
    said = job.failure or {}
    return f"{said.get('code', job.state)}: {said.get('message', 'no message')} (job {job.key})"


# ---- one measure per filter: (screening, rows of the structures that are left, threshold) → values -----------------
def ehull_lam(work: Screening, rows: np.ndarray, threshold: float) -> Measured:
    """Known for all; what passes gets its structure into its document, the others are found in their shards."""
    ehull = np.maximum(work.ehull_ev[rows], 0.0)
    fields = {int(k): {"structure": structure_blob(work.structures, int(rows[k]))} for k in np.flatnonzero(ehull <= threshold)}
    return Measured(ehull, f"hull of model {work.model_digest} at {work.pressure_gpa:g} GPa", fields=fields)


def spacegroup(work: Screening, rows: np.ndarray, threshold: float) -> Measured:
    """At the campaign's tolerance; one that is lost at a fifth of it is remarked upon."""
    symprec = work.campaign.funnel.symprec_a
    part = work.structures[rows]
    numbers, _ = spacegroups(part, symprec)
    reasons = {}
    passing = np.flatnonzero(numbers > threshold)
    tight, _ = spacegroups(part[passing], TIGHT * symprec)
    for k, number in zip(passing, tight, strict=True):
        if number != numbers[k]:
            reasons[int(k)] = f"only {number} at {TIGHT * symprec:g} Å"
    return Measured(numbers, f"moyopy, symprec {symprec:g} Å, checked at {TIGHT * symprec:g} Å", reasons=reasons)


def atomic_hydrogen(work: Screening, rows: np.ndarray, threshold: float) -> Measured:
    distance = work.campaign.funnel.atomic_h_distance_a
    return Measured(atomic_fraction(work.structures[rows], distance), f"nearest H beyond {distance:g} Å")


def phonons(work: Screening, rows: np.ndarray, threshold: float) -> Measured:
    """In jobs of several structures each; what an earlier screening found with the same settings is not asked again."""
    from hydroflow.lam.phonons import phonon_specs  # loads PyTorch

    campaign = work.campaign
    settings = f"model {work.model_digest}, supercell edges of {campaign.funnel.phonon_mesh_a:g} Å or more"
    known = work.known_values("phonons", settings)
    values = np.array([known.get(str(i), np.nan) for i in work.ids[rows]], float)
    asked = np.flatnonzero(np.isnan(values))
    per_job = int(np.clip(-(-len(asked) // PHONON_JOBS), *PHONONS_PER_JOB))
    jobs = work.run(phonon_specs(
        work.model_digest, work.structures[rows[asked]], campaign.funnel.phonon_mesh_a, per_job, work.store.objects,
        campaign.model.cores, campaign.model.wall_time_s, campaign.model.gpus), "phonons") if len(asked) else []
    reasons, fields = {}, {}
    for j, k in enumerate(asked.tolist()):
        job = jobs[j // per_job]
        fields[k] = {"jobs": [job.key]}
        value = job.result["min_frequency_thz"][j % per_job] if job.state == "done" else None
        if value is not None:
            values[k] = value
        elif job.state != "done":
            reasons[k] = f"phonons not computed, {failure(job)}"
        else:
            why = job.result.get("reasons", {}).get(str(j % per_job), "the model or phonopy gave no finite answer")
            reasons[k] = f"phonons not computed: {why} (job {job.key})"
    return Measured(values, settings, reasons=reasons, fields=fields)


def ehull_dft(work: Screening, rows: np.ndarray, threshold: float) -> Measured:
    """DFT relaxation of the best, and of the phases they compete with."""
    best = np.lexsort((work.ids[rows].astype(str), work.ehull_ev[rows]))
    limit = work.campaign.funnel.max_candidates_dft
    waiting = np.zeros(len(rows), bool)
    waiting[best[limit:] if limit else []] = True
    reasons = {int(k): f"not relaxed by DFT: rank {rank + 1} of {len(rows)}, funnel.max_candidates_dft = {limit}"
               for rank, k in enumerate(best) if waiting[k]}
    chosen = np.flatnonzero(~waiting)
    found = dft_distances(work, rows[chosen])
    values = np.full(len(rows), np.nan)
    values[chosen] = found.ehull_ev
    reasons |= {int(chosen[k]): words for k, words in found.reasons.items()}
    return Measured(values, found.settings, waiting, reasons, {int(chosen[k]): v for k, v in found.fields.items()})


# ---- the paper's five filters, registered in pyproject.toml ---------------------------------------------------------
EHULL_LAM = Filter(
    "ehull_lam", at_most, lambda v, t: f"{1000 * v:.0f} meV/atom above the model's hull, at most {1000 * t:g} allowed",
    ehull_lam, setting="ehull_lam_ev", field="ehull_lam_ev")
SPACEGROUP = Filter(
    "spacegroup", above, lambda v, t: f"space group {v:.0f}, above {t:g} wanted", spacegroup, setting="min_spacegroup",
    field="spacegroup", structural=lambda part, campaign: spacegroups(part, campaign.funnel.symprec_a)[0])
ATOMIC_HYDROGEN = Filter(
    "atomic_hydrogen", above, lambda v, t: f"{100 * v:.0f} % of the hydrogen is atomic, above {100 * t:g} % wanted",
    atomic_hydrogen, setting="min_atomic_h", field="atomic_h_fraction",
    structural=lambda part, campaign: atomic_fraction(part, campaign.funnel.atomic_h_distance_a))
PHONONS = Filter(
    "phonons", at_least, lambda v, t: f"lowest phonon frequency {v:.2f} THz, at least {t:g} THz wanted", phonons,
    setting="min_frequency_thz", field="min_frequency_thz")
EHULL_DFT = Filter(
    "ehull_dft", at_most, lambda v, t: f"{1000 * v:.0f} meV/atom above the DFT hull, at most {1000 * t:g} allowed",
    ehull_dft, setting="ehull_dft_ev", field="ehull_dft_ev")
