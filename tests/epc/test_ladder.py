"""Convergence ladders: the shipped file, and what the table says about convergence and agreement."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from ase.build import bulk
from click.testing import CliRunner

from hydroflow.arrays import StructureArrays
from hydroflow.cli.epc import _print_ladder, epc
from hydroflow.epc.ladder import Ladder, load_ladder, not_relaxed, table
from hydroflow.epc.protocols import meshes, primitive, protocol
from hydroflow.errors import SettingsError

EXAMPLE = Path(__file__).parents[2] / "examples" / "known-hydrides" / "ladder.toml"


def first_five() -> Ladder:
    """The first rungs of the shipped ladder."""
    ladder = load_ladder(EXAMPLE)
    return replace(ladder, rungs=ladder.rungs[:5])


ALUMINIUM = """[[compound]]
name = "Al"
pressure_gpa = 1
spacegroup = 225
cell = [4, 4, 4, 90, 90, 90]
sites = [['Al', 0, 0, 0]]
"""


def test_the_shipped_ladder_climbs():
    ladder = load_ladder(EXAMPLE)
    structures = ladder.structures()
    assert structures.formulas() == ["SH3", "CaH6", "YH6", "LaYH12", "LaBeH8", "Al"]
    for i in range(len(structures)):
        atoms = structures.atoms(i)
        crystal = primitive(atoms.numbers, atoms.cell.array, atoms.get_scaled_positions())
        assert len(crystal.numbers) == (4, 7, 7, 14, 10, 1)[i]
        grids = {rung.name: meshes(crystal, rung) for rung in ladder.rungs}
        assert grids["k8 q2"].coarse[0] <= grids["k9 q3"].coarse[0]
        for one, other in (("k8 q4", "k16 q4"), ("k12 q4", "k16 q4")):
            assert grids[one].q == grids[other].q and grids[one].coarse[0] < grids[other].coarse[0], "a step in k alone"
        assert all(g.q[0] <= grids["k20 q5"].q[0] and g.coarse[0] <= grids["k20 q5"].coarse[0] for g in grids.values())
    assert {r.degauss_ry for r in ladder.rungs} == {protocol("screening").degauss_ry}
    first = meshes(primitive(structures.numbers[:structures.counts[0]], structures.cells[0],
                             structures.fractional[:structures.counts[0]]), ladder.rungs[0])
    assert first.q == (2, 2, 2) and first.coarse == (8, 8, 8)


def test_the_narrow_ladder_is_the_same_crystals_with_the_smearing_it_argues_against():
    narrow, ladder = load_ladder(EXAMPLE.with_name("narrow.toml")), load_ladder(EXAMPLE)
    assert {r.degauss_ry for r in narrow.rungs} == {0.02}
    shipped = {c.name: c for c in ladder.compounds}
    assert all(c == shipped[c.name] for c in narrow.compounds)
    meshes_of = {r.name: (r.k_spacing, r.q_spacing) for r in ladder.rungs}
    assert all((r.k_spacing, r.q_spacing) == meshes_of[r.name.removesuffix(" narrow")] for r in narrow.rungs[1:])


_meshes = count(1)


def result(lam: float, omega: float, usable: bool = True, mesh: int | None = None, k: int | None = None) -> dict:
    q = mesh or next(_meshes)
    return {"status": "done", "core_hours": 1.0, "q_mesh": [q] * 3, "k_mesh": [k or q] * 3, "k_mesh_dense": [2 * (k or q)] * 3,
            "lambda": lam, "omega_log_k": omega, "rescaled": None, "usable": usable,
            "tc_k": {"0.10": {"mcmillan": 140.0, "allen_dynes": 150.0}},
            "checks": [{"name": "plateau", "passed": usable, "text": "λ varies by 40 %"}],
            "broadenings": [{"sigma_ry": 0.01, "lambda": lam, "omega_log_k": omega}]}


def test_convergence_and_agreement_are_said_plainly():
    ladder = first_five()
    failed = {"status": "failed", "core_hours": 0.5, "failure": {"message": "x"}}
    climb = [(1.4, 1065), (2.3, 1250), (2.5, 1200), (2.55, 1190), (2.5, 1180)]
    rows = table(ladder, [[result(*c), result(*c), failed, *[result(*c)] * 3] for c in climb])
    h3s, cah6, yh6 = (rows[5 * i:5 * i + 5] for i in range(3))
    assert [r["converged"] for r in h3s] == [False, False, True, True, True]
    assert [[known["agrees"] for known in r["references"]] for r in h3s[:3]] == [
        [False] * 3, [False, True, True], [False, True, True]], "each publication by itself, the first with a Tc"
    assert h3s[3]["references"][1]["off"] == {"lambda": 0.0, "omega_log_k": round(1190 / 1191 - 1, 4)}
    assert all(r["references"] == [] for r in cah6)
    assert h3s[1]["sigmas"] == [[0.01, 2.3, 1250]]
    # two rungs that agree but fail a check have not converged
    unusable = table(ladder, [[result(*c, usable=False)] * 6 for c in climb])
    assert not any(r["converged"] for r in unusable) and unusable[3]["reasons"] == ["λ varies by 40 %"]
    # what follows one that failed a check is compared with the usable one before that
    gap = table(ladder, [[result(*c, usable=u)] * 6 for c, u in zip(climb, (True, True, False, True, True), strict=True)])
    assert [r["converged"] for r in gap[:5]] == [False, False, False, True, True]
    alone = table(ladder, [[result(*c, usable=u)] * 6 for c, u in zip(climb, (False, False, False, False, True), strict=True)])
    assert not any(r["converged"] for r in alone)
    # nor has the same mesh under two names
    same = table(ladder, [[result(*c, mesh=m)] * 6 for c, m in zip(climb, (2, 3, 3, 3, 3), strict=True)])
    assert not any(r["converged"] for r in same)
    # a rung that differs in its broadenings, or failed, is none of that kind
    denser = replace(ladder, rungs=[*ladder.rungs[:4], replace(ladder.rungs[3], name="narrow", sigma_first_ry=0.001)])
    spread = table(denser, [[result(*c, mesh=m)] * 6 for c, m in zip([*climb[:4], (4.0, 900)], (2, 3, 4, 5, 5), strict=True)])
    assert [r["converged"] for r in spread[:5]] == [False, False, True, True, False]
    lost = table(ladder, [[result(*c, mesh=m)] * 6 if c else [{**failed, "q_mesh": [5] * 3, "k_mesh": [5] * 3}] * 6
                          for c, m in zip([*climb[:4], None], (2, 3, 4, 5, 5), strict=True)])
    assert [r["converged"] for r in lost[:5]] == [False, False, True, True, False]
    assert not any(r["converged"] for r in yh6) and yh6[0]["failure"] == {"message": "x"}


def test_convergence_needs_a_step_in_each_mesh(capsys):
    """A step that makes q coarser and k denser tells nothing of q, however small it is."""
    ladder = replace(first_five(), compounds=first_five().compounds[:1])
    climb = [(3, 9, 1.0), (5, 10, 1.60), (4, 16, 1.71), (4, 20, 1.70), (5, 20, 1.75)]
    rows = table(ladder, [[result(lam, 1400, usable=k > 9, mesh=q, k=k)] for q, k, lam in climb])
    assert [r["converged"] for r in rows] == [False, False, False, False, True]
    assert rows[2]["steps"] == {"q_mesh": None, "k_mesh": None}, "k 10³ is coarser in k but q 5³ is denser"
    assert rows[3]["steps"]["q_mesh"] is None and rows[3]["steps"]["k_mesh"] == {
        "rung": ladder.rungs[2].name, "lambda": round(1.70 / 1.71 - 1, 4), "omega_log_k": 0.0}
    assert [rows[4]["steps"][mesh]["rung"] for mesh in ("q_mesh", "k_mesh")] == [ladder.rungs[3].name, ladder.rungs[2].name]
    _print_ladder(rows)
    out = capsys.readouterr().out
    assert "not converged: not usable" in out
    assert "not converged: no usable rung is coarser in q or k without being denser in the other mesh" in out
    assert "not converged: no usable rung is coarser in q without" in out
    assert f"  converged: λ +3% and ω_log +0% from {ladder.rungs[3].name}" in out


def test_a_step_is_between_the_same_settings_and_along_every_axis():
    ladder = replace(first_five(), compounds=first_five().compounds[:1])

    def converged(first: dict, second: dict, rungs=ladder.rungs[:2]) -> bool:
        return table(replace(ladder, rungs=list(rungs)), [[{**result(1.6, 1400, mesh=3, k=9), **first}],
                                                          [{**result(1.7, 1400, mesh=4, k=12), **second}]])[1]["converged"]

    assert converged({}, {})
    assert not converged({}, {}, [ladder.rungs[0], replace(ladder.rungs[1], degauss_ry=0.02)]), "another smearing"
    assert not converged({}, {"k_mesh_dense": [12] * 3}), "a coarser dense mesh"
    layered = {"q_mesh": [4, 4, 2], "k_mesh": [8, 8, 4], "k_mesh_dense": [16, 16, 8]}
    assert not converged(layered, {"q_mesh": [4, 4, 3], "k_mesh": [8, 8, 6], "k_mesh_dense": [16, 16, 12]}), "one axis only"
    thin = {"q_mesh": [4, 4, 1], "k_mesh": [8, 8, 1], "k_mesh_dense": [16, 16, 2]}
    assert converged(thin, {"q_mesh": [6, 6, 1], "k_mesh": [12, 12, 1], "k_mesh_dense": [24, 24, 2]}), "one point is enough there"


def test_tc_counts_where_the_literature_has_it():
    ladder = first_five()
    yh6 = [c.name for c in ladder.compounds].index("YH6")
    close = {"lambda": 2.0, "omega_log_k": 1180.0}
    for tc, agrees in ((200.0, True), (150.0, False)):
        found = {**result(2.0, 1180), **close, "tc_k": {"0.10": {"mcmillan": 1.0, "allen_dynes": tc}}}
        row = table(ladder, [[found] * 6] * 5)[5 * yh6]
        assert row["references"][0]["agrees"] is agrees


def test_a_failed_relaxation_stops_only_its_compound(tmp_path, monkeypatch):
    head = "relax = true\ncores = 2\nwall_time_s = 7200\nmu_star = [0.1]\n[[rung]]\nname = 'a'\n"
    (tmp_path / "l.toml").write_text(head + "".join(ALUMINIUM.replace("Al", name) for name in ("Al", "Cu", "Ni")))
    jobs = [SimpleNamespace(failure=None, cost={}, state="done"),
            SimpleNamespace(failure={"code": "killed", "message": "gone"}, cost={"core_hours": 0.5}, state="quarantined"),
            SimpleNamespace(failure=None, cost={}, state="done")]
    ran, asked = [], []

    def relaxed(store, done):
        cells = {0: "Al", 2: "Ni"}
        i = jobs.index(done[0])
        return StructureArrays.from_atoms([bulk(cells[i])], {}) if i in cells else StructureArrays.empty()

    def chain(ledger, store, structures, pseudos, cutoffs, *rest, wall_time_s):
        assert wall_time_s == 7200
        ran.append((structures.columns["id"].tolist(), [c["ecutwfc_ry"] for c in cutoffs]))
        return [result(1.0, 300), result(2.0, 400)]

    monkeypatch.setattr("hydroflow.store.open_store", lambda settings: contextlib.nullcontext())
    monkeypatch.setattr("hydroflow.dispatch.ledger.Ledger", lambda store: SimpleNamespace(
        submit=lambda specs, campaign: specs, wait=lambda keys, on_progress: jobs))
    monkeypatch.setattr("hydroflow.dft.settings.label_settings", lambda labels, elements: SimpleNamespace(
        ecutwfc_ry=len(elements[0]) + ord(elements[0][0]), ecutrho_ry=0, engine="qe"))
    monkeypatch.setattr("hydroflow.dft.batch.relax_specs", lambda *given, resources, label: asked.append(resources) or ["spec"])
    monkeypatch.setattr("hydroflow.dft.batch.relaxed_structures", relaxed)
    monkeypatch.setattr("hydroflow.dft.batch.stored_pseudos", lambda store, settings: {})
    monkeypatch.setattr("hydroflow.epc.chain.run_chain", chain)
    done = CliRunner().invoke(epc, ["ladder", str(tmp_path / "l.toml"), "--json"], catch_exceptions=False)
    rows = {r["compound"]: r for r in json.loads(done.stdout)}
    assert rows["Cu"]["failure"]["message"] == "not relaxed: gone" and rows["Cu"]["core_hours"] == 0.5
    assert rows["Al"]["lambda"] == 1.0 and rows["Ni"]["lambda"] == 2.0
    # each with its own cutoff
    assert ran == [(["Al", "Ni"], [2 + ord("A"), 2 + ord("N")])]
    # relaxations have the cores and the wall time of the file
    assert {(r.cores, r.wall_time_s) for r in asked} == {(2, 7200)}


@pytest.mark.parametrize(("text", "words"), [
    ("x = [", "TOML"), ("[[rung]]\nname = 'a'\n", "at least one"), ("[[rung]]\nname = 'a'\nfoo = 1\n", "foo"),
    ("[[rung]]\nname = 'a'\n[[compound]]\nname = 'b'\n", "compound"), ("protocol = 'fast'\n", "plumbing"),
    ("protocol = 'plumbing'\n[[rung]]\nname = 'a'\n" + ALUMINIUM, "never usable"),
    ("[[rung]]\nname = 'a'\nk_spacing = 'x'\n" + ALUMINIUM, "k_spacing = 'x'"),
    ("[[rung]]\nname = 'a'\nk_spacing = -1\n" + ALUMINIUM, "k_spacing = -1"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("225", "999"), "compound Al: spacegroup 999"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("Al'", "Qq'"), "Qq"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM + "references = [{ lambda = 0, source = 'x' }]\n", "references: lambda = 0"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM + "references = [{ lambda = '2.5', source = 'x' }]\n", "references: lambda = '2.5'"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM + "references = [{ tc = 200, source = 'x' }]\n", "tc_allen_dynes_k"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM + "references = [{ lambda = 2.5 }]\n", "a source"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM + "references = { lambda = 2.5, source = 'x' }\n", "a list of tables"),
    ("[[rung]]\nname = 'a'\nsigma_count = 10.0\n" + ALUMINIUM, "sigma_count = 10.0 is not a whole number"),
    ("[[rung]]\nname = 'a'\ntetrahedra = 1\n" + ALUMINIUM, "tetrahedra = 1 is not true or false"),
    ("rung = 3\n" + ALUMINIUM, "rung = 3 is not a list"),
    ("mu_star = 0.1\n[[rung]]\nname = 'a'\n" + ALUMINIUM, "mu_star = 0.1 is not a list"),
    ("mu_star = [0.1, 0.7]\n[[rung]]\nname = 'a'\n" + ALUMINIUM, "mu_star = "),
    ("cores = '2'\n[[rung]]\nname = 'a'\n" + ALUMINIUM, "cores = '2' is not a whole number"),
    ("relax = 'no'\n[[rung]]\nname = 'a'\n" + ALUMINIUM, "relax = 'no' is not true or false"),
    ("pseudos = 1\n[[rung]]\nname = 'a'\n" + ALUMINIUM, "pseudos = 1"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("cell = [4,", "cell = [nan,"), "no crystal"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("0, 0, 0]", "0, nan, 0]"), "no crystal"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("cell = [4,", "cell = [-4,"), "no crystal"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("cell = [4, 4,", "cell = [4, 5,"), "less symmetry"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("225", "true"), "no crystal"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("gpa = 1", "gpa = inf"), "pressure_gpa, a number"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace("gpa = 1", "gpa = nan"), "pressure_gpa, a number"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM + ALUMINIUM, "a name of its own"),
    ("[[rung]]\nname = 'a'\n[[rung]]\nname = 'a'\n" + ALUMINIUM, "rung 'a': every rung needs a name of its own"),
    ("[[rung]]\nname = 'a'\n" + ALUMINIUM.replace('"Al"', '"Al/1"'), "without a slash"),
    ("wall_time_s = 0\n[[rung]]\nname = 'a'\n" + ALUMINIUM, "wall_time_s = 0")])
def test_a_bad_file_is_one_clear_line(tmp_path, text, words):
    (tmp_path / "l.toml").write_text(text)
    with pytest.raises(SettingsError, match=words) as caught:
        load_ladder(tmp_path / "l.toml")
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_is_one_clear_line(tmp_path):
    (tmp_path / "l.toml").write_bytes("# größer\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_ladder(tmp_path / "l.toml")


def test_a_compound_that_could_not_be_relaxed_stands_in_the_table_beside_the_others(capsys):
    ladder = first_five()
    failed = not_relaxed({"code": "scf_not_converged", "message": "no self-consistency"}, 0.25)
    rescaled = {"dos": 4.5, "rough_dos": 4.4, "mesh": [45] * 3, "rough_mesh": [30] * 3, "lambda": 2.2, "sigma_ry": 0.02,
                "tc_k": {"0.10": {"mcmillan": 200.0, "allen_dynes": 222.0}}, "offsets_ev": [-0.1, 0, 0.1],
                "dos_near": [4.6, 4.5, 3.2], "plateau": {"first": 0.01, "last": 0.05, "spread": 0.034}}
    rows = table(ladder, [[failed, *[{**result(2.0, 1200), "rescaled": rescaled}] * 5] for _ in ladder.rungs])
    assert [r["status"] for r in rows].count("failed") == len(ladder.rungs)
    _print_ladder([rows[0], rows[2 * len(ladder.rungs)]])
    out = capsys.readouterr().out
    assert "failed: not relaxed: no self-consistency" in out and "0.25" in out
    assert ("λ at N(E_F) by tetrahedra, 4.50 on 45×45×45, 4.40 on 30×30×30: 2.20 (0.02), Tc AD 222 K, "
            "varies by 3% from 0.01 to 0.05") in out
    assert "4.60 (-0.1), 4.50 (+0), 3.20 (+0.1)" in out
    # YH6, with its Tc beside λ and ω_log, as they are and with N(E_F) by tetrahedra
    assert "not within 15 % of λ 2.02 (-1%), ω_log 1190 K (+1%), Tc Allen–Dynes 208 K (-28%)" in out
    assert "at N(E_F) by tetrahedra within 15 %: λ +9%, ω_log +1%, Tc Allen–Dynes +7%" in out
