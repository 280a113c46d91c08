"""The model's phonons against DFPT's."""

from __future__ import annotations

import pytest

from hydroflow.store.documents import Candidate, ModelRecord, Run
from hydroflow.tc.phonons import agreement, record_agreement


def test_difference_and_verdicts():
    figures = agreement([1.0, -2.0, 3.0, -1.0, -0.4], [2.0, 1.0, -3.0, -4.0, 0.1])
    assert figures["mae_thz"] == pytest.approx((1 + 3 + 6 + 3 + 0.5) / 5)
    assert figures["bias_thz"] == pytest.approx((-1 - 3 + 6 + 3 - 0.5) / 5)
    # −0.4 THz is within the noise that the verdict allows: stable
    assert [figures[k] for k in ("both_stable", "only_lam_stable", "only_dfpt_stable", "neither_stable")] == [2, 1, 1, 1]
    assert figures["same_verdict"] == pytest.approx(0.6) and figures["compared"] == 5


@pytest.mark.service
def test_each_model_carries_its_own_figure(store):
    Run(campaign="c", digest="d", text="{}").save()
    for digest in ("one", "two", "unused"):
        ModelRecord(digest=digest, metrics={"force_mev_a": 100.0}).save()
    made = [Candidate(campaign="c", structure_id=str(i), model=model, epc_status=status, min_frequency_thz=lam, epc=epc)
            for i, (model, status, lam, epc) in enumerate([
                ("one", "done", 2.0, {"lowest_thz": 3.0}), ("one", "done", -1.0, {"lowest_thz": 4.0}),
                ("two", "done", 1.0, {"lowest_thz": 1.5}), ("two", "failed", 1.0, {"lowest_thz": -7.5}),
                ("two", "failed", 1.0, {}), ("two", None, 1.0, {}),
                ("one", "done", None, {"lowest_thz": 9.0})])]
    record_agreement("c", made)
    metrics = {m.digest: dict(m.metrics) for m in ModelRecord.objects}
    assert metrics["one"] == {"force_mev_a": 100.0, "phonon_mae_thz": 3.0, "phonon_same_verdict": 0.5, "phonons_compared": 2}
    # a chain that failed as imaginary_modes counts: the model took for stable what is not
    assert metrics["two"] == {
        "force_mev_a": 100.0, "phonon_mae_thz": 4.5, "phonon_same_verdict": 0.5, "phonons_compared": 2}
    assert metrics["unused"] == {"force_mev_a": 100.0}
    assert Run.objects.get(campaign="c").summary["phonons"]["compared"] == 4
    record_agreement("c", [])  # nothing to compare is no figure
    assert Run.objects.get(campaign="c").summary["phonons"]["compared"] == 4
