"""Labels outside the data set's range are held back with their reason, beside those a check of the label itself holds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import parse
from hydroflow.learning.steps import label
from tests.dft.driver import FolderStore, Objects

CAMPAIGN = parse('name = "x"\n[space]\nelements = ["Ca", "Y"]\n')


@pytest.fixture
def context(tmp_path, monkeypatch):
    """A learning context whose labels are made up: an outlier in pressure, one held by its own check, one failed."""
    monkeypatch.setenv("HYDROFLOW_QE_VERSION", "6.7")

    def run(specs, what):
        jobs = []
        for i, spec in enumerate(specs):
            n = len(spec.inputs["structure"]["numbers"])
            result = {"energy_ev": -10.0 * n + 0.1 * (i % 3), "virial_ev": np.eye(3).tolist(), "settings": "s",
                      "pressure_gpa": 200.0 + i % 5, "forces_ev_a": np.zeros((n, 3)).tolist(), "review": []}
            jobs.append(SimpleNamespace(key=spec.key, inputs=spec.inputs, state="done", failure=None, result=result))
        jobs[4].result["pressure_gpa"] = 900.0
        jobs[7].result["review"] = ["core spheres overlap by 70 %"]
        jobs[9].state, jobs[9].result, jobs[9].failure = "quarantined", None, {"code": "scf_not_converged"}
        context.keys = [job.key for job in jobs]
        return jobs

    context = SimpleNamespace(campaign=CAMPAIGN, store=FolderStore(Objects(tmp_path / "objects")), run=run, keys=[])
    return context


def test_what_is_held_is_counted_named_and_kept_out(context) -> None:
    rng = np.random.default_rng(0)
    batch = StructureArrays.from_lists([np.array([20, 1, 1])] * 30, list(rng.random((30, 3, 3))), [np.eye(3) * 3.2] * 30)
    found = label(context, batch, "stage1/0")
    assert found.quarantined == {"scf_not_converged": 1, "held for review": 2}
    assert set(found.held) == {context.keys[4], context.keys[7]}
    assert "pressure 900 GPa" in found.held[context.keys[4]] and "core spheres" in found.held[context.keys[7]]
    assert np.flatnonzero(~found.ok).tolist() == [4, 7, 9] and np.flatnonzero(found.on_hold).tolist() == [4, 7]
    assert len(found.frames) == 27 and found.frames.columns["pressure_gpa"].max() < 300
