"""Worker of ``structures.py``: random structures from pyxtal, one line of JSON per draw, each under a CPU limit.

Draws come as one JSON line on standard input. A draw that exceeds the limit kills the process (SIGXCPU); the parent starts
another for the rest. pyxtal gets the same cell volume and the same minimum distances as our generator.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings

import numpy as np
from pyxtal import pyxtal
from pyxtal.lattice import Lattice
from pyxtal.symmetry import Group
from pyxtal.tolerance import Tol_matrix


def main() -> None:
    warnings.simplefilter("ignore")
    task = json.loads(sys.stdin.readline())
    print(json.dumps({"ready": True}), flush=True)
    for draw in task["draws"]:
        used = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(np.ceil(used + task["cap_s"])), -1))
        reason = ""
        try:
            group = Group(draw["group"])
            limits = Tol_matrix()
            for pair, value in draw["distances"].items():
                limits.set_tol(*pair.split("-"), value)
            crystal = pyxtal()
            crystal.from_random(
                3, draw["group"], draw["species"], draw["counts"], conventional=False, tm=limits,
                lattice=Lattice(group.lattice_type, draw["volume"] * group.cellsize(), unique_axis="c"),
                random_state=np.random.default_rng(draw["seed"]))
            accepted = bool(crystal.valid)
        except Exception as error:  # whatever it raises, it did not make a structure
            accepted, reason = False, f"{type(error).__name__}: {error}"[:120]
        print(json.dumps({"accepted": accepted, "cpu_s": time.process_time() - used, "reason": reason}), flush=True)


if __name__ == "__main__":
    main()
