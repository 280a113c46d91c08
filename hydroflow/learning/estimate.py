"""What a campaign would do, before it does anything: counts exactly, costs roughly."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from hydroflow.campaign import Campaign
from hydroflow.epc.cost import typical_core_hours
from hydroflow.epc.protocols import protocol
from hydroflow.structures.space import compositions

# CPU seconds per job on one present-day core, 8–14 atoms at 200 GPa: orders of magnitude for planning, measured with
# Quantum ESPRESSO 6.7 and a small DPA-1 model (docs/dft.md, docs/lam.md); large cells cost more.
CPU_S_LABEL = {"fast": 4.0, "standard": 30.0, "paper": 150.0}
CPU_S_DFT_RELAXATION = 12  # in units of one label
CPU_S_TRAINING_STEP = 0.11
CPU_S_RELAXATION = 1.5
TYPICAL_ATOMS = 10
"""Of a candidate's primitive cell."""


@dataclass(frozen=True)
class Estimate:
    """Counts and core-hours of a campaign; upper limits where a loop may end early."""

    elements: int
    pairs: int
    ternary_compositions: int
    reference_compositions: int
    search_structures: int
    explored_structures: int
    labels: int
    trainings: int
    training_steps: int
    epc_candidates: int
    core_hours: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def estimate(campaign: Campaign) -> Estimate:
    """Upper limits of what is done: every stage runs to its last iteration and every EPC budget is used. What one job costs is
    that of a typical one."""
    space = compositions(campaign.space)
    learning, model, epc, tc = campaign.learning, campaign.model, campaign.epc, campaign.tc
    iterations = learning.stage1.max_iterations + learning.stage2.max_iterations
    labels = (
        learning.bootstrap_labels
        + learning.stage1.max_iterations * learning.stage1.labels
        + learning.stage2.max_iterations * learning.stage2.labels
    )
    explored = (
        learning.stage1.max_iterations * learning.stage1.structures
        + learning.stage2.max_iterations * learning.stage2.structures
    )
    searched = len(space) * campaign.search.structures_per_composition
    steps = model.ensemble * (model.steps + iterations * model.warm_steps)
    candidates = epc.initial + tc.rounds * tc.acquire
    label_s = CPU_S_LABEL[campaign.labels.protocol]
    hours = {
        "labels": labels * label_s,
        "training": steps * CPU_S_TRAINING_STEP,
        "exploration": explored * CPU_S_RELAXATION * (1 + model.ensemble) / 2,
        "search": searched * CPU_S_RELAXATION,
        "dft_hull": (campaign.funnel.max_candidates_dft or candidates * 8) * label_s * CPU_S_DFT_RELAXATION,
        "epc": 3600 * min(candidates * typical_core_hours(protocol(epc.protocol), TYPICAL_ATOMS),
                          epc.max_core_hours or float("inf")),
    }
    n = len(campaign.space.elements)
    return Estimate(
        n,
        n * (n - 1) // 2,
        space.ternaries,
        space.references,
        searched,
        explored,
        labels,
        model.ensemble * (1 + iterations),
        steps,
        candidates,
        {k: v / 3600 for k, v in hours.items()},
    )
