"""Search shards on a pair potential, and what is collected from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, parse
from hydroflow.cli.main import cli
from hydroflow.dispatch.ledger import Ledger
from hydroflow.errors import DataError, EngineFailure
from hydroflow.screening.hull import hull_distances
from hydroflow.screening.storage import write_shard
from hydroflow.search import collect, plan, shard
from hydroflow.search.collect import collect_search
from hydroflow.search.query import query, structures
from hydroflow.search.shard import SearchShard, search_specs
from hydroflow.store import Store
from hydroflow.store.documents import Candidate, Job
from hydroflow.store.runs import open_run
from tests.search.potential import pair_model

CAMPAIGN = """
name = "searched"
seed = 5
[space]
elements = ["Ca", "Y"]
m = [1, 1]
n = [1, 1]
hydrogen_ratio = [3, 3]
formula_units = [1, 1]
binary_hydrogen = [3, 3]
[relaxation]
fmax_ev_a = 0.2
max_steps = 60
[search]
structures_per_composition = 6
shard_structures = 15
"""


@pytest.fixture(autouse=True)
def _pair_potential(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model file of these tests stands for the pair potential."""
    monkeypatch.setattr("hydroflow.lam.LamModel.load", lambda path: pair_model())


def folder_of(tmp_path: Path, spec, name: str = "job") -> Path:  # type: ignore[no-untyped-def]
    folder = tmp_path / name
    folder.mkdir(parents=True)
    SearchShard().prepare(spec, {}, folder)
    return folder


def computed(store: Store, tmp_path: Path, campaign: Campaign) -> list[Job]:
    """The campaign's shards, computed here and entered into the ledger as an agent does."""
    specs = search_specs(campaign, store, store.objects.put(b"a model"))
    ledger = Ledger(store)
    keys = ledger.submit(specs, campaign.name)
    for spec in specs:
        folder = folder_of(tmp_path, spec, spec.key)
        result = SearchShard().compute(spec.inputs, {}, folder)
        json.dumps(result, allow_nan=False)
        outputs = {n: store.objects.put_file(folder / n) for n in SearchShard.output_names}
        ledger.collection.update_one({"_id": spec.key}, {"$set": {"state": "done", "result": result, "outputs": outputs}})
    return ledger.jobs(keys)


@pytest.mark.service
def test_search_collect_and_query(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = parse(CAMPAIGN)
    jobs = computed(store, tmp_path, campaign)
    asked = sum(r.count for r in plan.requests(campaign))
    assert sum(j.result["generated"] + j.result["missing"] for j in jobs) == asked == 36
    assert all(sum(j.result["statuses"].values()) == j.result["generated"] for j in jobs)
    collected = collect_search(store, jobs)
    found = collected.structures
    assert len(found) == sum(j.result["unique"] for j in jobs) > 20
    assert len(set(found.columns["id"])) == len(found)
    assert {"Ca", "Y", "H"} <= set(found.formulas())
    # the stored structure is the relaxed one: the model gives its energy again
    again = pair_model().evaluate(found)
    assert again.energy_ev == pytest.approx(found.columns["energy_ev"], abs=1e-3)
    assert found.enthalpies_ev(200.0) == pytest.approx(found.columns["enthalpy_ev"], abs=1e-6)

    # a large search hands on the near-hull part and every minimum, and nothing else
    distance = hull_distances(found, found.columns["enthalpy_ev"] / found.counts)
    collect_small, collect.SMALL = collect.SMALL, 0
    try:
        large = collect_search(store, jobs, keep_ehull_ev=0.05)
    finally:
        collect.SMALL = collect_small
    near = large.structures
    ternaries = sum(s == "Ca-H-Y" for s in found.chemical_systems())
    assert collected.ternaries == ternaries > sum(s == "Ca-H-Y" for s in near.chemical_systems())
    assert large.ternaries == ternaries, "what stays in the shards was searched too"
    lowest = set(found.columns["id"][np.isin(distance, [distance[np.array(found.formulas()) == f].min()
                                                        for f in set(found.formulas())])])
    assert set(near.columns["id"]) == set(found.columns["id"][distance <= 0.05]) | lowest

    ternary = np.array(found.chemical_systems()) == "Ca-H-Y"
    limit = round(float(np.median(distance[ternary])), 4) + 1e-5
    rows = query(store, f"system = 'Ca-H-Y' and ehull_lam_ev <= {limit} and not spacegroup <= 2", campaign.name)
    by_hand = ternary & (distance <= limit) & (found.columns["spacegroup"] > 2)
    assert {r["id"] for r in rows} == set(found.columns["id"][by_hand]) and rows
    assert (structures(store, rows).chemical_systems() == np.array(["Ca-H-Y"] * len(rows))).all()
    assert len(query(store, "", campaign.name)) == len(found)
    assert len(query(store, "natoms < 3", campaign.name, limit=2)) == 2

    # what only candidates have is asked in MongoDB, and joins the rows of the shards
    Candidate(campaign=campaign.name, structure_id=rows[0]["id"], formula=rows[0]["formula"], system="Ca-H-Y", tc_k=99.0,
              spacegroup=int(rows[0]["spacegroup"]), shard=rows[0]["shard"], row=rows[0]["row"]).save()
    assert [r["id"] for r in query(store, "tc_k > 50 and spacegroup > 2", campaign.name)] == [rows[0]["id"]]
    assert next(r for r in query(store, "formula = 'CaYH6'", campaign.name) if r["id"] == rows[0]["id"])["tc_k"] == 99.0
    with pytest.raises(DataError, match="has no finished search"):
        query(store, "natoms < 3", "another")

    # the same on the command line, which takes the last campaign where none is named
    monkeypatch.setattr("hydroflow.store.open_store", lambda *args: store)
    open_run(campaign)
    said = CliRunner().invoke(cli, ["structures", "query", f"system = 'Ca-H-Y' and ehull_lam_ev <= {limit}", "--all", "--json"])
    answer = json.loads(said.output)
    assert answer["campaign"] == campaign.name
    assert {r["id"] for r in answer["structures"]} == set(found.columns["id"][ternary & (distance <= limit)])
    table = CliRunner().invoke(cli, ["structures", "query", "tc_k > 50", "-c", campaign.name]).output
    assert rows[0]["id"] in table and " 99 " in table

    # shards of two models are never joined
    jobs[0].files["model.pt"] = "sha256:" + "0" * 64
    with pytest.raises(DataError, match="cannot mix pressures or models"):
        collect_search(store, jobs)


@pytest.mark.service
def test_a_damaged_shard_is_refused_by_digest(store: Store) -> None:
    one = StructureArrays.from_lists([np.array([1])], [np.zeros((1, 3))], [np.eye(3)], {"enthalpy_ev": np.zeros(1)})
    half = store.objects.put(write_shard(one)[:-100])
    job = Job(key="0123456789abcdef", kind="search.shard", state="done", result={"unique": 1, "pressure_gpa": 200.0},
              inputs={"pressure_gpa": 200.0}, files={"model.pt": "m"}, outputs={"shard.parquet": half})
    with pytest.raises(DataError, match=f"{half} .*half-written.* job 0123456789abcdef .*retry 0123456789ab --redo"):
        collect_search(store, [job])


@pytest.mark.service
def test_keys_are_the_same_for_the_same_search_whatever_its_name_and_clusters(store: Store) -> None:
    model = store.objects.put(b"a model")
    one = search_specs(parse(CAMPAIGN), store, model)
    other = search_specs(parse(CAMPAIGN.replace("searched", "other") + '[clusters.far]\nbatch = "Slurm"\n'), store, model)
    assert [s.key for s in one] == [s.key for s in other]
    tightened = parse(CAMPAIGN + "[funnel]\nehull_lam_ev = 0.01\n")
    assert [s.key for s in search_specs(tightened, store, model)] == [s.key for s in one], "thresholds must not redo a search"
    assert not {s.key for s in one} & {s.key for s in search_specs(parse(CAMPAIGN), store, store.objects.put(b"new model"))}
    assert len(one) == 3 and sum(c for s in one for _, c, _ in s.inputs["requests"]) == 36


@pytest.mark.service
def test_a_killed_shard_goes_on_and_ends_the_same(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = search_specs(parse(CAMPAIGN), store, "sha256:m")[0]
    monkeypatch.setattr(shard, "BLOCK_STRUCTURES", 4)
    whole = folder_of(tmp_path, spec, "whole")
    SearchShard().compute(spec.inputs, {}, whole)

    calls = []
    real = shard.search_block

    def dies_at_the_second(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(shard, "search_block", dies_at_the_second)
    killed = folder_of(tmp_path, spec, "killed")
    with pytest.raises(KeyboardInterrupt):
        SearchShard().compute(spec.inputs, {}, killed)
    SearchShard().compute(spec.inputs, {}, killed)
    assert len(calls) == 4, "a finished block was computed again"
    first, second = (StructureArrays.from_parquet((f / "shard.parquet").read_bytes()) for f in (whole, killed))
    assert first.columns["id"].tolist() == second.columns["id"].tolist()
    assert np.array_equal(first.fractional, second.fractional)


@pytest.mark.service
def test_a_shard_of_nothing_but_broken_structures_is_a_failure(store: Store, tmp_path: Path) -> None:
    campaign = parse(CAMPAIGN.replace("hydrogen_ratio = [3, 3]", "hydrogen_ratio = [3, 3]\nreferences = false")
                     + '[generator]\nminimum_distances_a = {"H-H" = 3.5}\n')
    spec = search_specs(campaign, store, "sha256:m")[0]
    with pytest.raises(EngineFailure, match=r"unphysical_result: no structure .* Ca1Y1H6"):
        SearchShard().compute(spec.inputs, {}, folder_of(tmp_path, spec))
