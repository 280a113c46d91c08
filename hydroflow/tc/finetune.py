"""The deepmd-kit input of the Tc model: an energy head and a Tc head on one descriptor, both trained, so that what the Large
Atomic Model knows of energies is not forgotten."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.tc.data import PROPERTY

ENERGY = "energy"


def multitask_input(
    lam: Mapping[str, Any], energy_systems: Sequence[str], tc_systems: Sequence[str], *, steps: int, energy_share: float,
    seed: int, start_lr: float = 1e-3, stop_lr: float = 1e-5, batch_size: str = "auto:128",
) -> dict[str, Any]:
    """Input of a multi-task fine-tuning.

    Parameters
    ----------
    lam
        ``model_params`` of the Large Atomic Model's checkpoint: the descriptor and the energy head must be the same.
    energy_systems, tc_systems
        Folders of deepmd systems.
    energy_share
        Share of the training steps on energies.
    """
    fitting = dict(lam["fitting_net"])
    tc_fitting = {"type": "property", "property_name": PROPERTY, "task_dim": 1, "intensive": True,
                  "neuron": fitting.get("neuron", [64, 64, 64]), "resnet_dt": True,
                  "precision": fitting.get("precision", "float32"), "seed": seed}

    def data(systems: Sequence[str]) -> dict[str, Any]:
        return {"training_data": {"systems": list(systems), "batch_size": batch_size, "auto_prob": "prob_sys_size"}}

    return {
        "model": {
            "shared_dict": {"type_map": list(lam["type_map"]), "descriptor": {**lam["descriptor"], "seed": seed}},
            "model_dict": {
                ENERGY: {"type_map": "type_map", "descriptor": "descriptor", "fitting_net": fitting,
                         "finetune_head": "Default"},
                PROPERTY: {"type_map": "type_map", "descriptor": "descriptor", "fitting_net": tc_fitting,
                           "finetune_head": "RANDOM"},
            },
        },
        "learning_rate": {"type": "exp", "decay_steps": max(1, steps // 100), "start_lr": start_lr, "stop_lr": stop_lr},
        "loss_dict": {
            ENERGY: {"type": "ener", "start_pref_e": 1, "limit_pref_e": 1, "start_pref_f": 20, "limit_pref_f": 20,
                     "start_pref_v": 0.1, "limit_pref_v": 0.1},
            PROPERTY: {"type": "property", "loss_func": "smooth_mae", "metric": ["mae"], "beta": 1.0},
        },
        "training": {
            "model_prob": {ENERGY: energy_share, PROPERTY: 1 - energy_share},
            "data_dict": {ENERGY: data(energy_systems), PROPERTY: data(tc_systems)},
            "numb_steps": steps, "seed": seed, "gradient_max_norm": 5.0, "disp_file": "lcurve.out",
            "disp_freq": max(1, steps // 20), "save_freq": steps, "save_ckpt": "model.ckpt",
        },
    }


def train(config: Mapping[str, Any], lam_checkpoint: Path, folder: Path) -> Path:
    """Run one fine-tuning in this process, in `folder`; returns the checkpoint.

    deepmd-kit takes many seconds to start, so folds share a process.

    Raises
    ------
    EngineFailure
        ``training_diverged`` when the loss is not finite, ``missing_output`` when no checkpoint was written.
    """
    from hydroflow.lam.backend import import_deepmd

    main = import_deepmd("deepmd.pt.entrypoints.main")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input.json").write_text(json.dumps(config, indent=1))
    before = Path.cwd()
    os.chdir(folder)  # deepmd-kit writes its files where it stands
    try:
        main.train(input_file="input.json", init_model=None, restart=None, finetune=str(lam_checkpoint), init_frz_model=None,
                   model_branch="", skip_neighbor_stat=True, output="out.json")
    finally:
        os.chdir(before)
    losses = [line.split() for line in (folder / "lcurve.out").read_text().splitlines() if not line.startswith("#")]
    if any(word.lower() in ("nan", "inf") for row in losses for word in row[1:]):
        raise EngineFailure(FailureCode.training_diverged, f"the loss of {folder.name} is not finite")
    checkpoints = sorted(folder.glob("model.ckpt-*.pt"), key=lambda p: int(p.stem.rsplit("-", 1)[1]))
    if not checkpoints:
        raise EngineFailure(FailureCode.missing_output, f"deepmd-kit left no checkpoint in {folder.name}")
    return checkpoints[-1]
