"""Real chains: pw.x, ph.x, q2r.x, matdyn.x and dos.x through the ledger and a real agent; kills on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from ase.build import bulk

from hydroflow.dispatch.ledger import Ledger
from hydroflow.epc import plots
from hydroflow.epc.chain import run_chain
from hydroflow.epc.ground_state import k_sampling
from hydroflow.epc.protocols import protocol
from hydroflow.errors import SettingsError
from hydroflow.store.documents import Job
from tests.engines.epc_driver import CUTOFFS, ENGINE, h3s, kill_when, pseudos, running, structures
from tests.fixtures_store import ROOT

pytestmark = pytest.mark.engine


def test_chains_run_to_a_verdict_and_are_never_repeated(store, agent, tmp_path):
    """H3S on a 2×2×2 q mesh, and an insulator that must not hold the others up."""
    agent()
    ledger = Ledger(store)
    settings = replace(protocol("plumbing"), q_spacing=1.5, k_spacing=1.5, sigma_first_ry=0.01, sigma_count=10,
                       degauss_ry=0.03, q_path_points=60, dos_spacing=0.35)
    batch = structures(H3S=h3s(), LiH=bulk("LiH", "rocksalt", a=4.08))
    given = (ledger, store, batch, pseudos(store.objects, "H", "S", "Li"), [CUTOFFS] * 2, ENGINE, settings, [0.1, 0.15], "chains")
    told: list[dict[str, int]] = []
    h3s_result, insulator = run_chain(*given, on_progress=told.append)

    assert h3s_result["status"] == "done", h3s_result["failure"]
    assert h3s_result["n_q"] == 3 and len(h3s_result["jobs"]) == 6
    assert len(h3s_result["broadenings"]) == 10
    assert all(0 < r["lambda"] < 20 and r["lambda_interpolated"] > 0 for r in h3s_result["broadenings"][2:])
    # k of 2³ makes H3S unstable, and the verdict says so
    assert "imaginary_modes" in {c["name"] for c in h3s_result["checks"] if not c["passed"]}
    assert set(h3s_result["tc_k"]) == {"0.10", "0.15"}
    assert not h3s_result["usable"]
    assert h3s_result["core_hours"] > 0 and h3s_result["work"] > 0
    assert 100 < h3s_result["pressure_gpa"] < 300
    # N(E_F) by tetrahedra on a mesh of its own, denser than those of this chain (k 45³ has 4.27 at 70 Ry)
    rescaled = h3s_result["rescaled"]
    assert rescaled["mesh"] == [9, 9, 9] and rescaled["rough_mesh"] == [6, 6, 6] and rescaled["lambda"] > 0
    assert 2.0 < rescaled["dos"] < 5.0 and len(rescaled["dos_near"]) == 5
    # by symmetry no force acts; the interpolation finds the instability too, at or between the points of the mesh
    checks = {c["name"]: c for c in h3s_result["checks"]}
    assert checks["relaxed"]["passed"] and checks["relaxed"]["value"] < 1e-3
    assert h3s_result["lowest_interpolated"]["thz"] < 0.9 * h3s_result["lowest_thz"] < 0
    assert not checks["interpolated_modes"]["passed"] and checks["q_points"]["passed"]
    spectra = json.loads(store.objects.get(h3s_result["spectra"]))
    assert len(spectra["a2f"]) == 10 and len(spectra["interpolated"]) == 10
    assert len(spectra["path"]["frequency_thz"]) == 60 and len(spectra["path"]["frequency_thz"][0]) == 12
    written = plots.write(h3s_result, spectra, tmp_path, "H3S")
    assert len(written) == 3 and all(p.stat().st_size > 5000 for p in written)

    assert insulator["status"] == "failed" and insulator["failure"]["code"] == "no_fermi_surface"
    assert told[-1]["done"] == 1 and told[-1]["failed"] == 1

    # in a batch, a chain that is done is collected before others go on, and those under way go on before others begin
    urgency = {kind: [j.priority for j in Job.objects(kind=f"epc.{kind}")] for kind in ("collect", "q", "dos", "scf")}
    assert min(urgency["collect"]) > max(urgency["q"]) and min(urgency["q"]) > max(urgency["dos"]) > max(urgency["scf"])

    attempts = {j.key: (j.attempt, j.finished) for j in Job.objects}
    assert run_chain(*given)[0] == h3s_result
    assert {j.key: (j.attempt, j.finished) for j in Job.objects} == attempts


def test_a_missing_pseudopotential_fails_one_crystal_only_and_the_other_gets_tetrahedra_too(store, agent):
    agent()
    settings = replace(protocol("plumbing"), k_spacing=3.0, tetrahedra=True)
    batch = structures(Al=bulk("Al"), Cu=bulk("Cu"))
    aluminium, copper = run_chain(Ledger(store), store, batch, pseudos(store.objects, "Al"), [CUTOFFS] * 2, ENGINE, settings,
                                  [0.1], "one")
    assert copper["failure"]["step"] == "scf" and "Cu" in copper["failure"]["message"]
    assert aluminium["status"] == "done", aluminium["failure"]
    tetrahedra = aluminium["tetrahedra"]
    assert tetrahedra["sigma_ry"] == 0 and tetrahedra["lambda"] > 0 and tetrahedra["tc_k"]["0.10"]["allen_dynes"] >= 0
    spectra = json.loads(store.objects.get(aluminium["spectra"]))["tetrahedra"]
    # without Γ
    assert spectra["weights"] == [4, 3] and spectra["lambda"][0][-1] == pytest.approx(tetrahedra["lambda"], rel=1e-4)
    with pytest.raises(SettingsError, match="object store"):
        run_chain(Ledger(store), store, batch, {"Al": "sha256:" + "0" * 64}, [CUTOFFS] * 2, ENGINE, settings, [0.1], "one")


def test_a_k_mesh_too_coarse_for_its_smearing_is_known_before_any_phonon_is_paid_for(store, agent):
    agent()
    settings = replace(protocol("screening"), q_spacing=1.5, k_spacing=1.5, degauss_ry=0.01)
    given = (Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE, settings, [0.1],
             "one")
    stopped = run_chain(*given, stop_coarse_k=True)[0]
    assert stopped["status"] == "failed" and stopped["failure"]["code"] == "coarse_k_mesh"
    assert stopped["failure"]["step"] == "scf" and "10% at most" in stopped["failure"]["message"]
    assert [j.kind for j in Job.objects] == ["epc.scf"]
    # the numbers of a ground state that an older version collected come from what it left
    found = Job.objects.get(kind="epc.scf").result["k_sampling_dos"]
    Job.objects(kind="epc.scf").update_one(unset__result__k_sampling_dos=1)
    assert k_sampling(Job.objects.get(kind="epc.scf"), store.objects) == found
    assert run_chain(*given, stop_coarse_k=True)[0] == stopped


def test_a_large_cell_shares_out_its_linear_response_unless_it_is_there_whole(store, agent):
    agent()
    settings = replace(protocol("plumbing"), k_spacing=2.0)
    given = (Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE, settings, [0.1],
             "one")
    whole = run_chain(*given)[0]
    assert run_chain(*given, modes_per_job=1)[0]["jobs"] == whole["jobs"]
    # also while it is being continued after a wall time
    Job.objects(key=whole["jobs"][1]).update_one(set__state="running", set__failure={"code": "walltime"})
    with pytest.raises(StopIteration):
        run_chain(*given, modes_per_job=1, on_progress=lambda _: next(iter(())))
    assert not Job.objects(kind="epc.irreps")

    Job.objects(kind__in=["epc.q", "epc.dos", "epc.collect"]).delete()
    shared = run_chain(*given, modes_per_job=1)[0]
    # Γ has one representation of three modes, L and X have two each
    assert sorted(j.kind for j in Job.objects) == ["epc.collect", "epc.dos", *["epc.irreps"] * 4, *["epc.q"] * 3, "epc.scf"]
    assert shared["lambda"] == pytest.approx(whole["lambda"], rel=1e-3) and shared["q_done"] == shared["n_q"] == 3
    attempts = {j.key: (j.attempt, j.finished) for j in Job.objects}
    assert run_chain(*given, modes_per_job=1)[0] == shared
    assert {j.key: (j.attempt, j.finished) for j in Job.objects} == attempts


def test_a_q_out_of_wall_time_is_run_again_only_with_more_of_it(store, agent):
    agent()
    given = (Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE,
             replace(protocol("plumbing"), k_spacing=2.0), [0.1], "one")
    whole = run_chain(*given, wall_time_s=3600)[0]
    q = whole["jobs"][1]
    Job.objects(key=q).update_one(set__state="quarantined", set__failure={"code": "walltime", "message": "out of time"})
    Job.objects(kind="epc.collect").delete()
    assert run_chain(*given, wall_time_s=3600)[0]["failure"]["code"] == "walltime"
    again = run_chain(*given, wall_time_s=7200)[0]
    assert again["status"] == "done" and again["lambda"] == pytest.approx(whole["lambda"], rel=1e-6)
    assert {j.key: j.attempt for j in Job.objects(kind="epc.q")} == {key: 1 + (key == q) for key in whole["jobs"][1:-2]}


def test_a_chain_goes_on_without_its_dos_by_tetrahedra(store, agent):
    agent()
    given = (Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE,
             replace(protocol("plumbing"), k_spacing=2.0), [0.1], "one")
    whole = run_chain(*given)[0]
    assert whole["rescaled"]["lambda"] > 0
    lost = {"code": "out_of_memory", "message": "no memory"}
    Job.objects(kind="epc.dos").update_one(set__state="quarantined", set__failure=lost)
    Job.objects(kind="epc.collect").delete()
    without = run_chain(*given)[0]
    assert without["status"] == "done" and without["rescaled"] is None
    assert "no λ at N(E_F) by tetrahedra: no memory" in without["limitations"]
    assert without["lambda"] == whole["lambda"] and without["checks"] == whole["checks"]


_FLOW = """
import sys
from dataclasses import replace
from ase.build import bulk
from hydroflow.dispatch.ledger import Ledger
from hydroflow.epc.chain import run_chain
from hydroflow.epc.protocols import protocol
from hydroflow.store import open_store
from tests.engines.epc_driver import CUTOFFS, ENGINE, pseudos, structures
store = open_store()
result = run_chain(Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE,
                   replace(protocol("plumbing"), k_spacing=2.0), [0.1], "killed", poll_s=0.1)[0]
print(result["status"], result["lambda"], flush=True)
"""


def test_the_flow_and_the_collection_killed_repeat_nothing_that_had_finished(store, agent, settings):
    agent()
    watcher = kill_when(settings.home, lambda _: running("matdyn.x", settings.home), "matdyn.x")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HYDROFLOW_HOME": str(settings.home),
                   "HYDROFLOW_MONGODB_URI": settings.mongodb_uri, "HYDROFLOW_DATABASE": settings.database}

    def done() -> int:
        return Job.objects(state="done").count()

    def flow() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", _FLOW], env=environment, stdout=subprocess.PIPE, text=True)

    for step in range(6):  # after nothing, the scf, each of the three q, N(E_F)
        process = flow()
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until and (done() < step or not Job.objects.count()):
            time.sleep(0.05)
        process.kill()
        process.wait()
    process = flow()
    out, _ = process.communicate(timeout=240)
    assert out.startswith("done")
    kinds = sorted(j.kind for j in Job.objects)
    assert kinds == ["epc.collect", "epc.dos", "epc.q", "epc.q", "epc.q", "epc.scf"]
    assert all(j.state == "done" for j in Job.objects)
    watcher.join()
    # the collection was killed in its interpolation and done again; no q was
    assert {j.kind: j.attempt for j in Job.objects} == {"epc.scf": 1, "epc.q": 1, "epc.dos": 1, "epc.collect": 2}
    collected = Job.objects(kind="epc.collect").first().result
    assert all("lambda_interpolated" in row for row in collected["broadenings"] if row["lambda"] > 0)
