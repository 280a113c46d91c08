"""What a report needs, read from the records of one campaign.

Only documents are read (:mod:`hydroflow.store.documents`): a report of a running, killed or finished campaign is the same
query. Large campaigns stay small here: what is drawn or listed is capped, and every cap is counted so the page can say so.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from hydroflow.campaign import Campaign
from hydroflow.errors import DataError, ServiceError
from hydroflow.report.words import filter_name
from hydroflow.screening.listing import why
from hydroflow.store import Store
from hydroflow.store.documents import Candidate, Iteration, Job, ModelRecord
from hydroflow.store.runs import get_run

MAX_ROWS = 300
"""Candidates listed in the table, the most advanced first; each brings its CIF into the page."""
MAX_POINTS = 3000
"""Candidates drawn in the figure of Tc against the hull distance."""
MAX_SPECTRA = 12
"""Candidates with a panel of their own on the page: λ(σ), α²F, Tc by formula, checks."""


@dataclass
class CandidateRow:
    """One candidate as the page shows it; energies in eV/atom, frequencies in THz, temperatures in K."""

    id: str
    formula: str
    system: str
    spacegroup: int | None
    spacegroup_symbol: str | None
    prototype: str | None
    natoms: int | None
    stage: str
    reason: str
    rejected_by: str | None
    ehull_lam_ev: float | None
    ehull_lam_error_ev: float | None
    ehull_dft_ev: float | None
    atomic_h_fraction: float | None
    min_frequency_thz: float | None
    hydrogen_dos_share: float | None
    lambda_: float | None
    omega_log_k: float | None
    tc_k: float | None
    tc_mcmillan_k: float | None
    tc_predicted_k: float | None
    tc_predicted_error_k: float | None
    usable: bool | None
    epc_status: str | None
    decomposition: dict[str, Any] = field(default_factory=dict)

    @property
    def ehull_ev(self) -> float | None:
        """E_hull at the best level there is."""
        return self.ehull_dft_ev if self.ehull_dft_ev is not None else self.ehull_lam_ev


@dataclass
class ReportData:
    """Everything on the page except the crystal structures."""

    campaign: str
    settings: Campaign
    digest: str
    stage: str
    message: str
    started: datetime | None
    updated: datetime | None
    finished: datetime | None
    timings_s: dict[str, float]
    funnel: list[dict[str, Any]]
    hull: dict[str, Any]
    tc_model: dict[str, Any]
    epc_note: str
    tc_note: str
    iterations: list[dict[str, Any]]
    candidates_total: int
    candidates_by_stage: dict[str, int]
    rows: list[CandidateRow]
    points: list[CandidateRow]
    epc: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    models: list[dict[str, Any]]
    label_settings: list[str]

    @property
    def plumbing(self) -> bool:
        """Whether the EPC of this campaign only proves machinery."""
        return self.settings.epc.protocol == "plumbing"

    @property
    def usable(self) -> list[CandidateRow]:
        """Candidates whose Tc counts, highest first."""
        found = [r for r in self.rows if r.tc_k is not None and r.usable]
        return sorted(found, key=lambda r: -(r.tc_k or 0))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for `hydroflow report --json`."""
        data = asdict(self)
        data["settings"] = self.settings.model_dump(mode="json")
        for key in ("started", "updated", "finished"):
            data[key] = data[key].isoformat() if data[key] else None
        del data["points"]
        return data


def read(store: Store, campaign: str) -> ReportData:
    """Read the records of a campaign.

    Raises
    ------
    CampaignError
        when no campaign of this name was ever started here.
    """
    run = get_run(campaign)
    rows = _rows(Candidate.objects(campaign=campaign))
    summary = run.to_mongo().get("summary", {})
    return ReportData(
        campaign=campaign, settings=Campaign.from_json(run.text), digest=run.digest,
        stage=run.stage or "new", message=run.message or "",
        started=run.started, updated=run.updated, finished=run.finished,
        timings_s={k: float(v) for k, v in (run.timings_s or {}).items()},
        funnel=summary.get("funnel") or [], hull=summary.get("hull") or {},
        tc_model=summary.get("tc_model") or {}, epc_note=summary.get("epc_note") or "", tc_note=summary.get("tc_note") or "",
        iterations=_iterations(campaign),
        candidates_total=Candidate.objects(campaign=campaign).count(),
        candidates_by_stage={g["_id"] or "searched": g["n"] for g in Candidate.objects(campaign=campaign).aggregate(
            [{"$group": {"_id": "$stage", "n": {"$sum": 1}}}])},
        rows=rows[:MAX_ROWS], points=[r for r in rows if r.tc_k is not None or r.tc_predicted_k is not None],
        epc=_epc(store, campaign), costs=_costs(campaign), failures=_failures(campaign), models=_models(campaign),
        label_settings=sorted(s for s in Candidate.objects(campaign=campaign).distinct("label_settings") if s),
    )


# ---- candidates -----------------------------------------------------------------------------------------------------
def _rows(candidates: Any) -> list[CandidateRow]:
    """The candidates that got furthest: those with EPC, those with a predicted Tc, then the others by E_hull."""
    light = candidates.exclude("structure", "structure_dft", "epc")
    found: dict[str, Candidate] = {}
    for part in (
        light.filter(epc_status__ne=None).order_by("-tc_k"),
        light.filter(tc_predicted_k__ne=None).order_by("-tc_predicted_k"),
        light.filter(stage="passed").order_by("ehull_lam_ev"),
        light.order_by("ehull_lam_ev"),
    ):
        for c in part.limit(MAX_POINTS):
            found.setdefault(c.structure_id, c)
    return [_row(c) for c in list(found.values())[:MAX_POINTS]]


def _row(c: Candidate) -> CandidateRow:
    return CandidateRow(
        id=c.structure_id, formula=c.formula, system=c.system, spacegroup=c.spacegroup,
        spacegroup_symbol=c.spacegroup_symbol, prototype=c.prototype, natoms=c.natoms, stage=c.stage or "searched",
        reason=_reason(c), rejected_by=c.rejected_by, ehull_lam_ev=c.ehull_lam_ev, ehull_lam_error_ev=c.ehull_lam_error_ev,
        ehull_dft_ev=c.ehull_dft_ev, atomic_h_fraction=c.atomic_h_fraction, min_frequency_thz=c.min_frequency_thz,
        hydrogen_dos_share=c.hydrogen_dos_share, lambda_=c.lambda_, omega_log_k=c.omega_log_k, tc_k=c.tc_k,
        tc_mcmillan_k=c.tc_mcmillan_k, tc_predicted_k=c.tc_predicted_k, tc_predicted_error_k=c.tc_predicted_error_k,
        usable=c.usable, epc_status=c.epc_status, decomposition=c.to_mongo().get("decomposition", {}),
    )


def _reason(c: Candidate) -> str:
    """Why it stands where it stands, in one line."""
    failed = next((v for v in c.verdicts if not v.passed), None)
    if c.stage == "waiting":
        return f"waiting{': ' + failed.reason if failed and failed.reason else ''}"
    if failed:
        words = failed.reason or ""
        if not words and failed.value is not None and failed.threshold is not None:
            words = f"{failed.value:.3g} against the threshold {failed.threshold:.3g}"
        name = filter_name(failed.filter)
        return words if words.startswith(name) else f"{name}: {words}".rstrip(": ")
    return why(c) or "not judged yet"


# ---- the rest -------------------------------------------------------------------------------------------------------
def _iterations(campaign: str) -> list[dict[str, Any]]:
    order = {"bootstrap": 0, "stage1": 1, "stage2": 2}
    found = sorted(Iteration.objects(campaign=campaign).as_pymongo(), key=lambda i: (order.get(i["stage"], 9), i["index"]))
    return [{
        "stage": i["stage"], "index": i["index"], "selected": i.get("selected"), "labelled": i.get("labelled") or 0,
        "reached": bool(i.get("reached")), **{k: i.get(k) or {} for k in ("explored", "quarantined", "errors", "goal")},
    } for i in found]


def _epc(store: Store, campaign: str) -> list[dict[str, Any]]:
    """Candidates with an EPC result, highest usable Tc first; the first few with their α²F."""
    done = Candidate.objects(campaign=campaign, epc_status="done").exclude("structure", "structure_dft").as_pymongo()
    found = [{**c.get("epc", {}), "id": c["structure_id"], "usable": bool(c.get("usable")), "reported_tc_k": c.get("tc_k"),
              "jobs": c.get("epc", {}).get("jobs") or c.get("jobs") or [],
              **{k: c.get(k) for k in ("formula", "spacegroup", "spacegroup_symbol", "hydrogen_dos_share")}} for c in done]
    found.sort(key=lambda e: (not e["usable"], -(e["reported_tc_k"] or 0.0)))
    for result in found[:MAX_SPECTRA]:
        result["spectrum"] = _spectrum(store, result)
    return found


def _spectrum(store: Store, result: dict[str, Any]) -> dict[str, Any] | None:
    """α²F, λ(ω) and the dispersion with the λ of its modes (``path``, None without one) at the reported broadening, from the file
    that the collecting job kept; None where there is none."""
    job = Job.objects(key__in=result["jobs"], kind="epc.collect", state="done").only("outputs").first()
    digest = (job.outputs or {}).get("spectra.json") if job else None
    if not digest:
        return None
    try:
        spectra = json.loads(store.objects.get(digest))
    except (ServiceError, DataError, ValueError):
        return None  # a report goes without a lost or broken plot file; `hydroflow storage` is who complains
    sigmas = spectra.get("sigma_ry") or []
    at = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - float(result.get("sigma_ry") or 0)), default=None)
    if at is None or not spectra["a2f"][at]:
        return None
    path = spectra.get("path")
    return {"frequency_thz": spectra["frequency_thz"], "a2f": spectra["a2f"][at], "lambda": spectra["lambda"][at],
            "path": {**path, "lambda": path["lambda"][at]} if path else None}


def _costs(campaign: str) -> list[dict[str, Any]]:
    """Jobs and core-hours per kind."""
    return [{"kind": g["_id"], "jobs": g["jobs"], "done": g["done"], "core_hours": float(g["core_hours"] or 0.0),
             "gpu_hours": float(g["gpu_hours"] or 0.0), "money": float(g["money"] or 0.0),
             "engines": sorted(e for e in g["engines"] if e)} for g in Job.objects(campaigns=campaign).aggregate([
        {"$group": {
            "_id": "$kind", "jobs": {"$sum": 1}, "done": {"$sum": {"$cond": [{"$eq": ["$state", "done"]}, 1, 0]}},
            "core_hours": {"$sum": "$cost.core_hours"},
            "gpu_hours": {"$sum": "$cost.gpu_hours"}, "money": {"$sum": "$cost.money"}, "engines": {"$addToSet": "$engine"},
        }},
        {"$sort": {"core_hours": -1, "_id": 1}},
    ])]


def _failures(campaign: str) -> list[dict[str, Any]]:
    """Jobs that ended without an answer, counted by kind and code."""
    jobs = Job.objects(campaigns=campaign, state__in=["failed", "quarantined"]).only("kind", "failure")
    counts = Counter((j.kind, (j.failure or {}).get("code", "unknown")) for j in jobs)
    return [{"kind": k, "code": c, "jobs": n} for (k, c), n in sorted(counts.items(), key=lambda x: (-x[1], x[0]))]


def _models(campaign: str) -> list[dict[str, Any]]:
    newest = ModelRecord.objects(campaign=campaign).exclude("learning_curve", "input").order_by("-created")[:16]
    return [{k: m.get(k) for k in ("role", "seed", "dataset", "engine", "scope")}
            | {"digest": m["_id"], "metrics": m.get("metrics") or {}} for m in newest.as_pymongo()]
