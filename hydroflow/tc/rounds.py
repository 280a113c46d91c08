"""The Tc active-learning loop: EPC of the first candidates, a Tc model, its ranking of the rest, more EPC.

As the paper: stage 1 takes candidates by symmetry, size and hydrogen share of N(E_F); stage 2 by E_hull(DFT) and the Tc
that a model, multi-task fine-tuned from the LAM, predicts. Everything is a function of the records and the ledger: run again,
it finds its calculations done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.dft.batch import dos_specs, stored_pseudos
from hydroflow.dft.settings import LabelSettings, epc_settings
from hydroflow.dispatch.job import Resources
from hydroflow.dispatch.ledger import Ledger
from hydroflow.epc.analysis import mu_key
from hydroflow.epc.chain import EpcResult, run_chain
from hydroflow.epc.cost import LEAST_TIMINGS
from hydroflow.errors import DataError
from hydroflow.lam.backend import engine_version
from hydroflow.store import Store
from hydroflow.store.documents import Candidate, ModelRecord, now
from hydroflow.store.runs import summarise
from hydroflow.structures.fingerprints import representatives
from hydroflow.tc.acquire import next_batch
from hydroflow.tc.budget import cost_model, estimates, left
from hydroflow.tc.model import tc_spec
from hydroflow.tc.phonons import record_agreement
from hydroflow.tc.queue import first_batch

Progress = Callable[[str, int, int], None]

PLUMBING_MAY_FAIL = (
    "protocol", "mesh_density", "k_sampling", "plateau", "interpolation", "interpolated_modes", "relaxed", "lambda")
"""Checks that a chain of protocol ``plumbing`` cannot pass by its settings (the coupling at Γ alone is no average over the
zone and has no bound, there is nothing to interpolate, and its k mesh has other forces and another pressure than the
relaxation's); all others must pass before even a plumbing model may train on its value."""


def tc_rounds(
    campaign: Campaign, store: Store, ledger: Ledger, lam_model: str, dataset: str, progress: Progress,
) -> int:
    """Run the loop over the candidates that passed the funnel; returns how many have an EPC result.

    Parameters
    ----------
    lam_model
        Digest of the checkpoint that the Tc model is fine-tuned from.
    dataset
        Digest of the labelled frames it was trained on: they are trained along, so that the energies are not forgotten.
    """
    settings = epc_settings(campaign)
    summarise(campaign.name, tc_note="", epc_note="")  # what an earlier run had to say may be mended
    candidates = list(Candidate.objects(campaign=campaign.name, stage__in=["passed", "epc"]).order_by(
        "ehull_dft_ev", "structure_id"))
    if not candidates:
        summarise(campaign.name, tc_note="no candidate passed the funnel: nothing to compute")
        return 0
    candidates = distinct(candidates)
    hydrogen_shares(campaign, store, ledger, candidates, settings, progress)
    # what an interrupted run had begun keeps its place, so that going on asks for the same calculations
    asked = begun = [c for c in candidates if c.epc_status is not None]
    while True:
        under_way = sum(c.epc_status not in ("done", "failed") for c in begun)
        count = campaign.epc.initial - len(begun)
        if campaign.epc.max_core_hours is not None and cost_model().timings < LEAST_TIMINGS:
            count = min(count, LEAST_TIMINGS - under_way)  # what these cost says how many more the budget allows
        chosen = pick(campaign, candidates, settings, count)
        if asked or chosen:
            coupling(campaign, store, ledger, [*asked, *chosen], settings, "EPC, first batch", progress)
        begun, asked = [*begun, *chosen], []
        if campaign.epc.max_core_hours is None or not (chosen or under_way) or len(begun) >= campaign.epc.initial:
            break
    for index in range(campaign.tc.rounds):
        wanted = campaign.epc.initial + (index + 1) * campaign.tc.acquire - sum(c.epc_status is not None for c in candidates)
        if wanted < 1:
            continue
        predicted = predict(campaign, store, ledger, candidates, lam_model, dataset, index, progress)
        # while there are too few usable values for a model, the queue of the first batch goes on
        batch = pick(campaign, candidates, settings, min(wanted, campaign.tc.acquire), predicted)
        if not batch:
            break
        coupling(campaign, store, ledger, batch, settings, f"EPC, batch {index + 2}", progress)
    record_agreement(campaign.name, candidates)
    return sum(c.epc_status == "done" for c in candidates)


def pick(
    campaign: Campaign, candidates: Sequence[Candidate], settings: LabelSettings, count: int, predicted: bool = False,
) -> list[Candidate]:
    """The next `count` candidates for EPC that the budget allows: by predicted Tc where there is a model, else by symmetry, size
    and hydrogen share. What each is expected to cost goes onto its document."""
    rest = [c for c in candidates if c.epc_status is None]
    if not rest or count < 1:
        return []
    costs = estimates(candidate_structures(rest), {s: p.valence for s, p in settings.pseudos.items()}, settings.ecutwfc_ry,
                      campaign.epc.protocol, cost_model())
    for c, hours in zip(rest, costs, strict=True):
        c.epc_estimate_core_hours = hours
        Candidate.objects(id=c.id).update_one(set__epc_estimate_core_hours=hours)
    money = left(campaign.epc.max_core_hours, [c for c in candidates if c.epc_status is not None])
    if predicted:
        chosen = next_batch([c.ehull_dft_ev for c in rest], [c.tc_predicted_k for c in rest], count, costs, money)
    else:
        chosen = first_batch([c.spacegroup or 1 for c in rest], [c.natoms for c in rest], [c.hydrogen_dos_share for c in rest],
                             count, costs, money)
    if money is not None and len(chosen) < min(count, len(rest)):
        summarise(campaign.name, epc_note=f"{len(chosen)} of {min(count, len(rest))} wanted EPC chains fit into what is left of "
                  f"epc.max_core_hours, {max(money, 0):.2g} of {campaign.epc.max_core_hours:g} core-hours")
    return [rest[i] for i in chosen]


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates without those that DFT relaxation turned into the same crystal as another of their formula; one EPC
    calculation is enough for them. The others' documents name the one that stands for them (``duplicate_of``)."""
    structures = candidate_structures(candidates)
    # within one formula, distances from the hull differ as enthalpies do
    heights = np.array([np.nan if c.ehull_dft_ev is None else c.ehull_dft_ev for c in candidates])
    standing = representatives(structures, heights)
    for i, candidate in enumerate(candidates):
        twin = candidates[standing[i]].structure_id if standing[i] != i else None
        if candidate.duplicate_of != twin:
            candidate.duplicate_of = twin
            Candidate.objects(id=candidate.id).update_one(set__duplicate_of=twin)
    return [c for c in candidates if c.duplicate_of is None]


def candidate_structures(candidates: Sequence[Candidate]) -> StructureArrays:
    """The structure of each candidate, relaxed by DFT where that was done, else by the model; column ``id``."""
    parts = [StructureArrays.from_parquet(bytes(c.structure_dft or c.structure)) for c in candidates]
    out = StructureArrays.concatenate(
        StructureArrays(p.offsets, p.numbers, p.fractional.astype(float), p.cells.astype(float)) for p in parts)
    out.columns["id"] = np.array([c.structure_id for c in candidates], dtype=object)
    return out


def hydrogen_shares(
    campaign: Campaign, store: Store, ledger: Ledger, candidates: Sequence[Candidate], settings: LabelSettings,
    progress: Progress,
) -> None:
    """Hydrogen's share of N(E_F) of each candidate."""
    resources = Resources(cores=campaign.labels.cores, wall_time_s=campaign.labels.wall_time_s)
    specs = dos_specs(store, candidate_structures(candidates), settings, resources=resources, label="hydrogen DOS")
    keys = ledger.submit(specs, campaign.name)
    jobs = ledger.wait(keys, on_progress=_jobs_told(progress, "hydrogen share of N(E_F)", len(keys)))
    for candidate, job in zip(candidates, jobs, strict=True):
        if job.state == "done":
            candidate.hydrogen_dos_share = job.result["hydrogen_dos_share"]
            Candidate.objects(id=candidate.id).update_one(
                set__hydrogen_dos_share=candidate.hydrogen_dos_share, add_to_set__jobs=job.key)


def coupling(
    campaign: Campaign, store: Store, ledger: Ledger, candidates: Sequence[Candidate], settings: LabelSettings, what: str,
    progress: Progress,
) -> list[EpcResult]:
    """EPC chains of some candidates; results go onto their documents."""
    structures = candidate_structures(candidates)
    structures.columns["hydrogen_dos_share"] = np.array(
        [np.nan if c.hydrogen_dos_share is None else c.hydrogen_dos_share for c in candidates])
    structures.columns["pressure_gpa"] = np.full(len(structures), campaign.pressure.campaign_gpa)
    # in one write: a batch that a kill left half marked would be another batch next time
    Candidate.objects(id__in=[c.id for c in candidates], epc_status=None).update(set__epc_status="queued", set__stage="epc")

    def told(counts: dict[str, int]) -> None:
        progress(f"{what} ({counts['jobs_done']} of {counts['jobs']} jobs so far)", counts["done"] + counts["failed"],
                 counts["crystals"])

    results = run_chain(
        ledger, store, structures, stored_pseudos(store, settings),
        [{"ecutwfc_ry": settings.ecutwfc_ry, "ecutrho_ry": settings.ecutrho_ry}] * len(structures),
        settings.engine, campaign.epc.protocol,
        campaign.epc.mu_star, campaign.name, campaign.epc.cores, told, wall_time_s=campaign.epc.wall_time_s,
        modes_per_job=campaign.epc.modes_per_job, stop_coarse_k=True)
    for candidate, result in zip(candidates, results, strict=True):
        _record(campaign, candidate, result)
    return results


def _record(campaign: Campaign, candidate: Candidate, result: EpcResult) -> None:
    done = result["status"] == "done"
    candidate.epc_status = "done" if done else "failed"
    candidate.epc = result
    candidate.usable = bool(result.get("usable"))
    candidate.cost_core_hours = result.get("core_hours")
    values: dict[str, Any] = {
        "set__stage": "epc", "set__epc_status": candidate.epc_status, "set__epc": result, "set__usable": candidate.usable,
        "set__cost_core_hours": result.get("core_hours"), "add_to_set__jobs": result.get("jobs", []), "set__updated": now()}
    if done:
        tc = result["tc_k"][mu_key(campaign.epc.mu_star[0])]
        candidate.tc_k = tc["allen_dynes"]
        values |= {"set__lambda_": result["lambda"], "set__omega_log_k": result["omega_log_k"],
                   "set__tc_k": tc["allen_dynes"], "set__tc_mcmillan_k": tc["mcmillan"]}
    else:  # an earlier verdict may have left values that this one denies
        candidate.tc_k = None
        values |= {f"unset__{name}": 1 for name in ("lambda_", "omega_log_k", "tc_k", "tc_mcmillan_k")}
    Candidate.objects(id=candidate.id).update_one(**values)


def trainable(campaign: Campaign, candidate: Candidate) -> bool:
    """Whether this candidate's Tc may train the Tc model: usable, or in a plumbing campaign that asks for it, flawed only by
    what the protocol ``plumbing`` cannot do."""
    if candidate.epc_status != "done":
        return False
    if candidate.usable:
        return True
    return campaign.tc.include_plumbing and all(
        c["passed"] or c["name"] in PLUMBING_MAY_FAIL for c in candidate.epc["checks"])


def predict(
    campaign: Campaign, store: Store, ledger: Ledger, candidates: Sequence[Candidate], lam_model: str, dataset: str,
    index: int, progress: Progress,
) -> bool:
    """Train the Tc model on what is known and predict the others; False when there is too little to train on (which the run's
    summary then says)."""
    known = [c for c in candidates if trainable(campaign, c)]
    rest = [c for c in candidates if c.epc_status is None]
    structures = candidate_structures(known) if known else StructureArrays.empty()
    structures.columns["tc_k"] = np.array([c.tc_k for c in known], float)
    others = candidate_structures(rest) if rest else StructureArrays.empty()
    scope = "plumbing" if any(not c.usable for c in known) else "campaign"
    try:
        spec = tc_spec(campaign, store.objects, lam_model, dataset, structures, others, engine_version(), scope)
    except DataError as error:
        summarise(campaign.name, tc_note=f"no Tc model in round {index + 1}: {error}")
        return False
    key = ledger.submit([spec], campaign.name)
    job = ledger.wait(key, on_progress=_jobs_told(progress, f"Tc model, round {index + 1}", 1))[0]
    if job.state != "done":
        reason = (job.failure or {}).get("message", job.state)
        summarise(campaign.name, tc_note=f"the Tc model of round {index + 1} could not be trained: {reason}")
        return False
    result = job.result
    ModelRecord.objects(digest=job.outputs["model.pt"]).modify(
        upsert=True, set__campaign=campaign.name, set__role="tc", set__job=job.key, set__dataset=dataset,
        set__parents=[lam_model], set__type_map=campaign.model.type_map, set__engine=job.engine, set__scope=scope,
        set__metrics={"cv": result["cv"], "baseline": result["baseline"]})
    summarise(campaign.name, tc_model={
        "cv": result["cv"], "baseline_mae_k": result["baseline"]["mae_k"], "scope": scope, "values": result["values"],
        "folds": result["folds"], "round": index + 1})
    if rest:
        table = StructureArrays.from_parquet(store.objects.get(job.outputs["predictions.parquet"])).columns
        predicted = dict(zip(table["id"], zip(table["tc_predicted_k"], table["tc_error_k"], strict=True), strict=True))
        for c in rest:
            c.tc_predicted_k, c.tc_predicted_error_k = map(float, predicted[c.structure_id])
            Candidate.objects(id=c.id).update_one(
                set__tc_predicted_k=c.tc_predicted_k, set__tc_predicted_error_k=c.tc_predicted_error_k
            )
    return True


def _jobs_told(progress: Progress, what: str, total: int) -> Callable[[dict[str, int]], None]:
    def told(counts: dict[str, int]) -> None:
        progress(what, sum(counts.get(s, 0) for s in ("done", "failed", "quarantined", "cancelled")), total)

    return told
