"""The deepmd-kit input of a model: descriptor, fitting network, loss and schedule from the campaign's ``[model]`` section.

Everything here is a plain dictionary for ``dp --pt train``; nothing imports deepmd-kit. The Tc model reuses the descriptor and
fitting networks for its multi-task fine-tuning, so that a Large Atomic Model checkpoint fits it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hydroflow.campaign import Model

_SAVE_FREQ = 2000
"""Most steps between two checkpoints: what a kill can cost, minutes whatever the length of the training."""
_NEIGHBOUR_DENSITY_A3 = 0.55
"""Neighbours per Å³ that the network is dimensioned for: solid hydrogen near 250 GPa has 0.5, random hydrides no more."""

_DPA1_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"neuron": [8, 16, 32], "axis_neuron": 8, "tebd_dim": 8, "attn": 32, "attn_layer": 0},
    "small": {"neuron": [16, 32, 64], "axis_neuron": 8, "tebd_dim": 8, "attn": 64, "attn_layer": 0},
    "standard": {"neuron": [25, 50, 100], "axis_neuron": 12, "tebd_dim": 16, "attn": 128, "attn_layer": 2},
}
_DPA2_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "g1": 32, "g2": 16, "last": 32},
    "small": {"layers": 3, "g1": 64, "g2": 32, "last": 64},
    "standard": {"layers": 6, "g1": 128, "g2": 32, "last": 100},
}
_DPA3_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "n": 32, "e": 16, "a": 8},
    "small": {"layers": 3, "n": 64, "e": 32, "a": 16},
    "standard": {"layers": 6, "n": 128, "e": 64, "a": 32},
}
_FITTING_NEURONS = {"tiny": [32, 32, 32], "small": [64, 64, 64], "standard": [240, 240, 240]}


def neighbour_limit(cutoff_a: float) -> int:
    """Neighbours within `cutoff_a` (Å) that a model holds before it drops the farthest; even, with room for dense hydrides."""
    return 2 * math.ceil(_NEIGHBOUR_DENSITY_A3 * 4 / 3 * math.pi * cutoff_a**3 / 2)


def descriptor_config(model: Model, seed: int) -> dict[str, Any]:
    """The descriptor of a model.

    DPA-1 is ``se_atten`` with stripped, one-sided, smooth type embedding; only ``standard`` has attention layers, because
    without them a model relaxes structures an order of magnitude faster on a CPU (docs/lam.md).
    """
    cutoff = model.cutoff_a
    if model.descriptor == "dpa1":
        return {
            "type": "dpa1", "rcut": cutoff, "rcut_smth": 0.5, "sel": neighbour_limit(cutoff), **_DPA1_SIZES[model.size],
            "type_one_side": True, "attn_dotr": True, "attn_mask": False, "activation_function": "tanh",
            "scaling_factor": 1.0, "normalize": True, "temperature": 1.0, "set_davg_zero": True,
            "smooth_type_embedding": True, "tebd_input_mode": "strip", "precision": "float32", "seed": seed,
        }
    inner = min(4.0, cutoff - 0.5)
    if model.descriptor == "dpa2":
        size = _DPA2_SIZES[model.size]
        return {
            "type": "dpa2",
            "repinit": {"rcut": cutoff, "rcut_smth": 0.5, "nsel": neighbour_limit(cutoff),
                        "neuron": [size["last"] // 4, size["last"] // 2, size["last"]], "axis_neuron": 8, "tebd_dim": 8,
                        "tebd_input_mode": "strip", "type_one_side": True, "set_davg_zero": True},
            "repformer": {"rcut": inner, "rcut_smth": inner - 0.5, "nsel": neighbour_limit(inner),
                          "nlayers": size["layers"], "g1_dim": size["g1"], "g2_dim": size["g2"], "axis_neuron": 4,
                          "attn1_hidden": size["g1"], "attn2_hidden": size["g2"], "attn2_nhead": 4,
                          "update_g1_has_attn": False, "update_g2_has_g1g1": False, "update_g2_has_attn": True,
                          "update_h2": False, "update_style": "res_residual", "update_residual": 0.01,
                          "update_residual_init": "norm", "use_sqrt_nnei": True, "g1_out_conv": True, "g1_out_mlp": True,
                          "set_davg_zero": True},
            "concat_output_tebd": True, "smooth": True, "precision": "float32", "seed": seed,
        }
    size = _DPA3_SIZES[model.size]
    return {
        "type": "dpa3",
        "repflow": {"n_dim": size["n"], "e_dim": size["e"], "a_dim": size["a"], "nlayers": size["layers"],
                    "e_rcut": cutoff, "e_rcut_smth": cutoff - 0.7, "e_sel": neighbour_limit(cutoff),
                    "a_rcut": inner, "a_rcut_smth": inner - 0.5, "a_sel": neighbour_limit(inner), "axis_neuron": 4,
                    "fix_stat_std": 0.3, "a_compress_rate": 1, "a_compress_e_rate": 2, "a_compress_use_split": True,
                    "update_angle": True, "smooth_edge_update": True, "edge_init_use_dist": True, "use_exp_switch": True,
                    "use_dynamic_sel": True, "sel_reduce_factor": 10.0, "update_style": "res_residual",
                    "update_residual": 0.1, "update_residual_init": "const"},
        "activation_function": "silut:10.0", "use_tebd_bias": False, "concat_output_tebd": False, "precision": "float32",
        "seed": seed,
    }


def energy_fitting_config(model: Model, seed: int) -> dict[str, Any]:
    """The fitting network that turns a descriptor into the atom's energy."""
    return {"type": "ener", "neuron": list(_FITTING_NEURONS[model.size]), "resnet_dt": True,
            "activation_function": "tanh", "precision": "float32", "seed": seed}


def energy_loss_config() -> dict[str, Any]:
    """Weights of energy, force and virial for compressed solids.

    Forces of random structures at 200 GPa are of the order of 10 eV/Å and lead the start; what a hull needs is the energy.
    The virial per atom is as large as the energy there (PV of 5–10 eV/atom), so that it counts from the start: it is what
    relaxation at pressure follows. Against weights that grow the energy's share a hundredfold during training, these left
    errors a fifth to a third smaller after equal steps (209 frames of Ca-Be-H, docs/lam.md).
    """
    return {"type": "ener", "start_pref_e": 1.0, "limit_pref_e": 2.0, "start_pref_f": 10.0, "limit_pref_f": 2.0,
            "start_pref_v": 0.1, "limit_pref_v": 0.2}


def learning_rate_config(model: Model, steps: int, scale: float = 1.0) -> dict[str, Any]:
    """Exponential decay from ``start_lr`` to ``stop_lr`` over `steps`; `scale` lowers both after a diverged training."""
    return {"type": "exp", "decay_steps": max(1, steps // 100), "start_lr": model.start_lr * scale,
            "stop_lr": model.stop_lr * scale}


def training_input(
    model: Model, train: Sequence[str], validation: Sequence[str], steps: int, seed: int, rate_scale: float = 1.0,
) -> dict[str, Any]:
    """The whole input of one energy training.

    Parameters
    ----------
    model : Model
        The campaign's ``[model]`` section.
    train, validation : sequences of str
        Folders of deepmd systems (``deepmd/npy/mixed``); an empty `validation` leaves it out.
    steps : int
        Training steps.
    seed : int
        Seeds weights and the order of the data.
    rate_scale : float
        Factor on the learning rates.
    """
    training: dict[str, Any] = {
        "training_data": {"systems": list(train), "batch_size": model.batch_size, "auto_prob": "prob_sys_size"},
        "numb_steps": steps, "seed": seed, "gradient_max_norm": 5.0,
        "disp_file": "lcurve.out", "disp_freq": max(1, steps // 40),
        "save_freq": min(max(50, steps // 10), _SAVE_FREQ), "save_ckpt": "model.ckpt", "max_ckpt_keep": 2,
    }
    if validation:
        training["validation_data"] = {"systems": list(validation), "batch_size": model.batch_size, "numb_btch": 1}
    return {
        "model": {"type_map": list(model.type_map), "descriptor": descriptor_config(model, seed),
                  "fitting_net": energy_fitting_config(model, seed)},
        "learning_rate": learning_rate_config(model, steps, rate_scale),
        "loss": energy_loss_config(),
        "training": training,
    }
