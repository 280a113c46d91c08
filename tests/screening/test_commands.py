"""`hydroflow candidates` and `hydroflow screen` on a screened campaign."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pymatgen.core import Structure

from hydroflow.arrays import StructureArrays
from hydroflow.cli.main import cli
from hydroflow.errors import HydroflowError
from hydroflow.screening import listing
from hydroflow.screening.funnel import screen
from hydroflow.store import Store
from hydroflow.store.documents import Candidate
from hydroflow.store.runs import get_run, open_run, summarise
from tests.screening.recorded import RecordedLedger
from tests.screening.searched import campaign, finished_shards, searched
from tests.screening.test_funnel import LOOSE, MODEL, Answers

pytestmark = pytest.mark.service
Run = Callable[..., Result]


@pytest.fixture
def started(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line on the test's own store, with one campaign started in it."""
    monkeypatch.setattr("hydroflow.store.open_store", lambda *args: store)
    open_run(campaign(funnel=LOOSE))
    return lambda *args: CliRunner().invoke(cli, list(args), catch_exceptions=False)


@pytest.fixture(scope="module")
def structures() -> StructureArrays:
    return searched(campaign())


@pytest.fixture
def run(store: Store, started: Run, structures: StructureArrays) -> Run:
    """As `started`, and the campaign is screened and has one Tc."""
    counts = screen(campaign(funnel=LOOSE), store, RecordedLedger(store, Answers(store, structures)), structures, MODEL)
    summarise("screened", funnel=[vars(s) for s in counts.steps])
    first = Candidate.objects.get(structure_id=counts.passed[0])
    first.update(epc_status="done", stage="epc", tc_k=187.4, usable=True, lambda_=1.9, omega_log_k=1100.0)
    return started


def test_candidates_as_table_json_and_csv(run: Run) -> None:
    table = run("candidates", "screened", "-n", "5").output
    assert "187" in table and "1.90" in table and "5 of" in table
    found = json.loads(run("candidates", "screened", "--json", "--all").output)
    rows = found["candidates"]
    assert found["total"] == len(rows) == Candidate.objects.count()
    assert rows[0]["tc_k"] == 187.4 and rows[0]["reason"] == "Tc computed", "what got furthest comes first"
    assert rows[1]["stage"] == "passed"
    as_csv = list(csv.DictReader(io.StringIO(run("candidates", "screened", "--csv", "--all").output)))
    assert [r["id"] for r in as_csv] == [r["id"] for r in rows] and set(as_csv[0]) == set(listing.FIELDS)


def test_filters_and_sorting(run: Run) -> None:
    def rows(*args: str) -> list[dict]:
        return json.loads(run("candidates", "screened", "--json", "--all", *args).output)["candidates"]

    phonons = rows("--rejected-by", "phonons", "--sort", "ehull")
    assert phonons and all(r["rejected_by"] == "phonons" and "lowest phonon frequency -6.00 THz" in r["reason"] for r in phonons)
    assert [r["ehull_lam_ev"] for r in phonons] == sorted(r["ehull_lam_ev"] for r in phonons)
    narrow = rows("--rejected-by", "ehull_lam", "--within", "0.1")
    everyone = rows("--rejected-by", "ehull_lam")
    assert {r["id"] for r in narrow} == {r["id"] for r in everyone if r["ehull_lam_ev"] <= 0.165} != {r["id"] for r in everyone}
    assert {r["formula"] for r in rows("--formula", "CaYH12")} == {"CaYH12"}
    assert len(rows("--system", "Y-Ca-H")) == len(rows("--element", "Ca", "--element", "Y")) == Candidate.objects.count()
    assert len(rows("--min-tc", "100")) == 1 and not rows("--min-tc", "200")


def test_export_writes_the_structures(run: Run, tmp_path: Path) -> None:
    run("candidates", "screened", "--stage", "passed", "-n", "3", "--export-cif", str(tmp_path / "cif"), "--export-poscar",
        str(tmp_path / "poscar"), "--json")
    for folder, suffix in (("cif", "cif"), ("poscar", "vasp")):
        files = sorted((tmp_path / folder).glob(f"*.{suffix}"))
        assert len(files) == min(3, Candidate.objects(stage="passed").count())
        for path in files:
            text = path.read_text()
            structure = Structure.from_str(text, fmt="cif" if suffix == "cif" else "poscar")
            reduced = structure.composition.reduced_composition
            assert {e.symbol for e in reduced} == {"Ca", "Y", "H"} and path.name.split("_")[1].startswith("CaYH")


def test_screen_and_what_if(run: Run) -> None:
    now = json.loads(run("screen", "screened", "--json").output)
    assert now["searched"] > now["steps"][0]["count"] > now["steps"][-1]["count"] > 0
    tighter = json.loads(run("screen", "screened", "--what-if", "ehull_lam=0.05", "--json").output)
    assert tighter["steps"][0]["count"] < now["steps"][0]["count"] and tighter["what_if"] == {"ehull_lam": 0.05}
    assert "ehull_lam=0.05" in run("screen", "screened", "--what-if", "ehull_lam=0.05").output


def test_screening_again_counts_all_that_was_searched(
    store: Store, started: Run, structures: StructureArrays, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a large search only the part near the hull is screened, but the funnel begins with everything."""
    finished_shards(store, campaign(), structures, MODEL)
    monkeypatch.setattr("hydroflow.search.collect.SMALL", 0)
    monkeypatch.setattr("hydroflow.dispatch.ledger.Ledger", lambda store: RecordedLedger(store, Answers(store, structures)))
    found = json.loads(started("screen", "screened", "--run", "--json").stdout)
    ternaries = sum(s == "Ca-H-Y" for s in structures.chemical_systems())
    assert found["searched"] == get_run("screened").summary["funnel"][0]["count"] == ternaries
    assert found["steps"][0]["count"] == Candidate.objects(ehull_lam_ev__lte=0.15).count() < Candidate.objects.count() < ternaries
    assert found["steps"][-1]["count"] == Candidate.objects(stage="passed").count() > 0


@pytest.mark.parametrize(("args", "words"), [
    (("candidates", "unknown"), "no campaign 'unknown'"),
    (("structures", "query", "tc_k > 50", "-c", "unknown"), "no campaign 'unknown'"),
    (("candidates", "screened", "--sort", "colour"), "cannot sort by 'colour'"),
    (("candidates", "screened", "--rejected-by", "taste"), "no filter 'taste'"),
    (("candidates", "screened", "--within", "0.1"), "--within needs --rejected-by"),
    (("screen", "screened", "--what-if", "ehull_lam"), "write FILTER=VALUE"),
    (("screen", "screened", "--what-if", "ehull_lam=9"), "keep_ehull_ev"),
    (("screen", "screened", "--run"), "no finished search"),
])
def test_wrong_questions_get_one_line(started: Run, args: tuple[str, ...], words: str) -> None:
    with pytest.raises(HydroflowError, match=words):
        started(*args)
