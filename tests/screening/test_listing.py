"""What people ask of the candidates is answered from an index: no document is looked at in vain."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from mongoengine import QuerySet

from hydroflow.campaign import Funnel
from hydroflow.screening.listing import find, narrowly_rejected, sorted_by
from hydroflow.store import Store
from hydroflow.store.documents import Candidate

pytestmark = pytest.mark.service
ELEMENTS = ("Ca", "La", "Mg", "Sc", "Sr", "Y")
STAGES = ("ehull_lam", "spacegroup", "atomic_hydrogen", "phonons", "ehull_dft", "passed", "epc")
NAME = "asked"
QUESTIONS: dict[str, Callable[[], QuerySet]] = {
    "system": lambda: find(NAME, system="Ca-H-Y").order_by("ehull_lam_ev"),
    "element": lambda: find(NAME, elements=["Sc"]).order_by("ehull_lam_ev"),
    "two elements": lambda: find(NAME, elements=["Sc", "La"]).order_by("ehull_lam_ev"),
    "formula": lambda: find(NAME, formula="CaYH7"),
    "Tc": lambda: sorted_by(find(NAME, min_tc_k=150.0), "tc"),
    "predicted Tc": lambda: sorted_by(find(NAME), "tc-predicted"),
    "hull distance": lambda: sorted_by(find(NAME, max_ehull_lam_ev=0.02), "ehull"),
    "DFT hull distance": lambda: sorted_by(find(NAME, max_ehull_dft_ev=0.02), "ehull-dft"),
    "stage": lambda: find(NAME, stage="passed").order_by("ehull_lam_ev"),
    "EPC": lambda: find(NAME, epc_status="done"),
    "rejected": lambda: find(NAME, rejected_by="phonons").order_by("ehull_lam_ev"),
    "narrowly rejected": lambda: narrowly_rejected(find(NAME), "ehull_lam", Funnel()),
}


@pytest.fixture
def candidates(store: Store) -> None:
    """Two campaigns of 1 500 candidates each, whose fields say nothing about each other."""
    documents = []
    pairs = list(itertools.combinations(ELEMENTS, 2))
    for campaign, i in itertools.product((NAME, "another"), range(1500)):
        a, b = pairs[i % len(pairs)]
        stage = STAGES[i % len(STAGES)]
        documents.append({
            "campaign": campaign, "structure_id": str(i), "formula": f"{a}{b}H{6 + i % 4}", "elements": sorted((a, b, "H")),
            "system": "-".join(sorted((a, b, "H"))), "ehull_lam_ev": (i * 7919 % 1500) / 7500, "stage": stage,
            **({"rejected_by": stage} if stage not in ("passed", "epc") else {"ehull_dft_ev": (i * 31 % 1500) / 15000}),
            **({"tc_predicted_k": float(i * 17 % 300)} if stage in ("passed", "epc") else {}),
            **({"epc_status": "done", "tc_k": float(i * 13 % 300)} if stage == "epc" else {})})
    store.database[Candidate._get_collection_name()].insert_many(documents)


@pytest.mark.parametrize("question", QUESTIONS)
def test_only_what_is_wanted_is_looked_at(candidates: None, question: str) -> None:
    found = QUESTIONS[question]().limit(50)  # as the command line asks
    explained = found.explain()["executionStats"]
    assert explained["nReturned"] == len(found) > 0
    assert explained["totalDocsExamined"] == explained["nReturned"]
