"""The report as a reader meets it: in a real browser without a network, with its table, structures and empty states."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from hydroflow.campaign import parse
from hydroflow.cli.report import report
from hydroflow.errors import CampaignError, SettingsError
from hydroflow.report import read, write_report
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store, open_store, services
from hydroflow.store.documents import Candidate, Run, Verdict
from tests.report import hunt
from tests.report.browser import CandidateRows, Row, open_page

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def page(mongod: ServiceSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the finished hunt, written once."""
    folder = tmp_path_factory.mktemp("report")
    settings = replace(mongod, home=folder / "home", database="test_report_page", mongodb_uri=services.mongodb_uri(mongod))
    with open_store(settings) as store:
        written = write_report(store, hunt.record(store), folder / "report.html")
        store.database.client.drop_database(settings.database)
    return written


def acted(page: Path, script: str, folder: Path) -> list[Row]:
    """The table's rows after a script played the reader."""
    copy = folder / "acted.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return CandidateRows(open_page(copy, folder).dom).rows


def test_opens_in_a_browser_without_any_request(page: Path, tmp_path: Path) -> None:
    opened = open_page(page, tmp_path)
    assert opened.requests == []
    assert opened.console == ""
    assert len(CandidateRows(opened.dom).rows) == hunt.COUNT
    assert f"{hunt.COUNT} of {hunt.COUNT} shown" in opened.dom  # its script ran
    for section in ("funnel", "candidates", "tc", "coupling", "hull", "tc-model", "learning", "cost", "provenance"):
        inside = opened.dom.split(f'<section id="{section}">')[1].split("</section>")[0]
        assert 'class="empty"' not in inside


def test_the_coupling_of_each_candidate_is_drawn(page: Path) -> None:
    inside = page.read_text().split('<section id="coupling">')[1].split("</section>")[0]
    cards = inside.split('<article class="card">')[1:]
    assert all("λ against broadening" in c and "Tc against broadening" in c and "α²F of" in c for c in cards)
    drawn = [c.split('aria-label="phonon dispersion')[1].split("</svg>")[0] for c in cards if "phonon dispersion" in c]
    assert 0 < len(drawn) < len(cards)  # a chain whose q mesh could not be interpolated has no dispersion
    circles = re.findall(r"<title>([\d.]+) THz: λ ([\d.]+)</title>", drawn[0])
    assert circles and all(24 <= float(thz) <= 27 for thz, _ in circles)  # only the mode that couples
    assert "M|R" in drawn[0]
    assert "Eliashberg, μ* = 0.15" in cards[0]


def test_a_page_that_asks_for_something_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "leaky.html"
    page.write_text('<!doctype html><img src="https://example.invalid/logo.png">')
    assert open_page(page, tmp_path).requests == ["https://example.invalid/logo.png"]


def test_filters_and_sorting_in_a_browser(page: Path, tmp_path: Path) -> None:
    rows = acted(page, """
        const set = (id, value) => {
          const e = document.getElementById(id); e.value = value; e.dispatchEvent(new Event("input"));
        };
        set("filter-find", "cah6 221"); set("filter-tc", "100");
        [...document.querySelectorAll("#candidates-table th button")].find(b => b.textContent.startsWith("λ")).click();
    """, tmp_path)
    shown = [r for r in rows if "hidden" not in r.attributes]
    assert shown and all(r.cells[1] == "CaH6" and "(221)" in r.cells[2] for r in shown)
    assert all(float(r.attributes["data-tc"] or 0) >= 100 for r in shown)
    coupling = [float(r.cells[8]) for r in rows if r.cells[8]]
    assert coupling == sorted(coupling, reverse=True) and rows[-1].cells[8] == ""

    rejected = acted(page, """
        const e = document.getElementById("filter-where"); e.value = "rejected-phonons"; e.dispatchEvent(new Event("input"));
    """, tmp_path)
    shown = [r for r in rejected if "hidden" not in r.attributes]
    assert len(shown) == sum("rejected-phonons" in (r.attributes["data-where"] or "") for r in rows) > 0
    assert all("lowest mode −6.2 THz" in r.cells[-1] for r in shown)


def test_every_structure_can_be_taken_away_as_a_cif(page: Path) -> None:
    rows = CandidateRows(page.read_text()).rows
    assert all(len(row.links) == 1 for row in rows)
    seen = set()
    for row in rows[:6] + rows[-6:]:
        link, formula = row.links[0], row.cells[1]
        kind, data = (link["href"] or "").split(";base64,")
        assert kind == "data:chemical/x-cif"
        structure = Structure.from_str(base64.b64decode(data).decode(), fmt="cif")
        assert structure.composition.reduced_formula == formula and (link["download"] or "").startswith(formula)
        if "(221)" in row.cells[2]:
            group = SpacegroupAnalyzer(structure, 0.05).get_space_group_number()
            assert group in (221, 229)  # with one metal on both sites the same cell is bcc
            seen.add(group)
            metals = tuple(s for s in re.findall("Ca|Y", formula))
            original = hunt.clathrate(metals * 2 if len(metals) == 1 else metals)  # type: ignore[arg-type]
            assert StructureMatcher(scale=True).fit(structure, original)
    assert seen == {221, 229}


def test_a_campaign_that_has_just_begun(store: Store, tmp_path: Path) -> None:
    campaign = parse(hunt.CAMPAIGN % "plumbing")
    Run(campaign=hunt.NAME, digest=campaign.digest(), text=campaign.to_json(), stage="bootstrap",
        message="12 of 60 labels").save()
    opened = open_page(write_report(store, hunt.NAME, tmp_path / "new.html"), tmp_path)
    assert opened.dom.count('class="empty"') == 8
    assert "stands at bootstrap: 12 of 60 labels" in opened.dom
    assert opened.console == ""


def test_plumbing_never_reads_like_a_prediction(store: Store, tmp_path: Path) -> None:
    name = hunt.record(store, protocol="plumbing")
    Candidate.objects.update(usable=False)
    html = write_report(store, name, tmp_path / "r.html").read_text()
    assert "They are no predictions" in html and "highest usable Tc" not in html and "no Tc to quote: EPC is plumbing" in html
    with_tc = [r for r in CandidateRows(html).rows if r.cells[10]]
    assert len(with_tc) == 14 and all(r.cells[10].startswith("(") for r in with_tc)


def test_a_budget_that_ran_out_is_said_beside_the_couplings(store: Store, tmp_path: Path) -> None:
    name = hunt.record(store)
    Run.objects.update(summary__epc_note="2 of 20 wanted EPC chains fit into what is left of epc.max_core_hours")
    html = write_report(store, name, tmp_path / "r.html").read_text()
    assert "2 of 20 wanted EPC chains" in html.split('<section id="coupling">')[1].split("</section>")[0]


def test_what_others_wrote_stays_text(store: Store, tmp_path: Path) -> None:
    name = hunt.record(store)
    evil = '<script>alert("x")</script>'
    Candidate.objects(rejected_by="phonons").update(
        verdicts=[Verdict(filter="phonons", passed=False, reason=evil)], prototype=evil + '"')
    Run.objects.update(message=evil, finished=None)
    html = write_report(store, name, tmp_path / "r.html").read_text()
    assert evil not in html and "&lt;script&gt;" in html


def test_large_campaigns_list_the_most_advanced_and_say_so(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydroflow.report.records.MAX_ROWS", 20)
    data = read(store, hunt.record(store))
    assert [r.epc_status for r in data.rows[:15]] == ["done"] * 14 + ["failed"]
    html = write_report(store, hunt.NAME, tmp_path / "r.html").read_text()
    assert len(CandidateRows(html).rows) == 20 and "the 20 that got furthest are listed" in html


def test_numbers_behind_the_page(store: Store) -> None:
    data = read(store, hunt.record(store))
    assert [s["count"] for s in data.funnel] == [24310, 412, 96, 61, 34, 17]
    assert sum(i["labelled"] for i in data.iterations) == 513
    assert [i["stage"] for i in data.iterations] == ["bootstrap"] + ["stage1"] * 5 + ["stage2"] * 2
    assert data.usable[0].tc_k == 214.0 and len(data.usable) == 13 == len(data.epc) - 1
    assert data.epc[-1]["usable"] is False and data.epc[0]["spectrum"]["a2f"]
    costs = {c["kind"]: c for c in data.costs}
    assert costs["lam.train"]["core_hours"] == pytest.approx(16 * 0.21) and costs["dft.label"]["done"] == 38
    assert data.failures == [{"kind": "dft.label", "code": "scf_not_converged", "jobs": 3}]
    assert json.loads(json.dumps(data.to_dict()))["candidates_total"] == hunt.COUNT


def test_command(store: Store, tmp_path: Path) -> None:
    hunt.record(store)
    out = tmp_path / "deep" / "report.html"
    env = store.settings.to_environment()
    done = CliRunner().invoke(report, [hunt.NAME, "-o", str(out)], env=env, catch_exceptions=False)
    assert done.output == f"report: {out}\n" and out.read_text().endswith("</html>\n")
    numbers = CliRunner().invoke(report, [hunt.NAME, "--json"], env=env, catch_exceptions=False)
    assert json.loads(numbers.output)["funnel"][0]["count"] == 24310


def test_errors_say_what_to_do(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match=r"'nowhere' was ever started here .*hydroflow run FILE"):
        write_report(store, "nowhere", tmp_path / "r.html")
    name = hunt.record(store)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot write the report"):
        write_report(store, name, tmp_path / "file" / "r.html")
    assert not list(tmp_path.glob(".*"))
