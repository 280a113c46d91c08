"""Drives a user's own CALYPSO, generation by generation in split mode: the generator ``calypso``.

hydroflow neither contains nor replaces CALYPSO: ``generator.calypso_command`` names the executable. Each cell composition
has a folder of its own; the state of the exchange is in ``hydroflow.json`` there, written before and after every start of
the executable, so that a killed run goes on: a start that did not end is undone from the copy taken before it.

The driver follows CALYPSO's documented file exchange and is tested against a simulator of it (tests/structures), not
against the executable itself.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.errors import CampaignError, DataError, GenerationFailed
from hydroflow.structures.calypso_files import (
    FAILED_ENTHALPY_EV,
    formula_of,
    input_dat,
    read_poscar,
    write_contcar,
    write_outcar,
)
from hydroflow.structures.generate import Failure, Generation, Request, structure_ids
from hydroflow.structures.space import Composition
from hydroflow.structures.variation import Crystal
from hydroflow.structures.volumes import atomic_volumes, minimum_distances

MAX_GENERATIONS = 1000
"""Generations announced to CALYPSO; hydroflow decides when to stop."""
WALL_TIME_S = 3600.0
"""One start of the executable may take so long: it only makes structures."""


class CalypsoRun:
    """One CALYPSO run in a folder.

    Parameters
    ----------
    folder
        Belongs to this run alone.
    command
        Command line of the executable.
    symbols, counts
        Elements and atoms per cell, in the order of ``input.dat``.
    """

    def __init__(self, folder: Path, command: str, symbols: list[str], counts: list[int]) -> None:
        self.folder, self.command, self.symbols, self.counts = folder, command, symbols, counts

    @property
    def _state_file(self) -> Path:
        return self.folder / "hydroflow.json"

    def state(self) -> dict[str, int]:
        """``generation`` (waiting for relaxed structures, from 1; 0 before the first) and ``population``.

        Raises
        ------
        DataError
            when the folder holds something that is not a run of ours.
        """
        if not self._state_file.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise DataError(f"{self.folder}: a CALYPSO folder without hydroflow.json (half-written by a killed run, or not "
                                "hydroflow's); delete it to begin this composition again")
            return {"generation": 0, "population": 0}
        try:
            state = json.loads(self._state_file.read_text())
            return {"generation": int(state["generation"]), "population": int(state["population"])}
        except (ValueError, KeyError) as error:
            raise DataError(f"{self._state_file}: damaged; delete the folder to begin this composition again") from error

    def begin(self, text: str, population: int) -> None:
        """Write ``input.dat`` and let CALYPSO make the first generation."""
        shutil.rmtree(self.folder, ignore_errors=True)  # what a start killed at the very beginning left
        self.folder.mkdir(parents=True)
        self._write_state(0, population)
        (self.folder / "input.dat").write_text(text)
        self._step(0, population)

    def population(self) -> list[Crystal]:
        """The structures that wait to be relaxed."""
        self._undo_if_killed()
        found = []
        for n in range(1, self.state()["population"] + 1):
            path = self.folder / f"POSCAR_{n}"
            crystal = read_poscar(path, self.symbols)
            if formula_of(crystal) != dict(sorted(zip(self.symbols, self.counts, strict=True), key=_by_number)):
                raise DataError(f"{path}: holds {formula_of(crystal)}, not the composition of input.dat; delete the folder "
                                f"{self.folder} to begin again")
            found.append(crystal)
        return found

    def advance(self, relaxed: dict[int, tuple[Crystal, float]], pressure_gpa: float) -> None:
        """Hand the relaxed generation back and let CALYPSO make the next.

        Parameters
        ----------
        relaxed
            Number in the population (from 1) → relaxed structure and enthalpy in eV per cell. Those missing count as failed.
        pressure_gpa
            Pressure in GPa.
        """
        waiting = self.population()
        state = self.state()
        for n, crystal in enumerate(waiting, 1):
            done, enthalpy = relaxed.get(n, (crystal, FAILED_ENTHALPY_EV))
            write_contcar(self.folder / f"CONTCAR_{n}", done, self.symbols)
            write_outcar(self.folder / f"OUTCAR_{n}", done, self.symbols, enthalpy, pressure_gpa)
        self._step(state["generation"], state["population"])
        for n in range(1, state["population"] + 1):
            (self.folder / f"CONTCAR_{n}").unlink()
            (self.folder / f"OUTCAR_{n}").unlink()

    def _step(self, generation: int, population: int) -> None:
        """One start of the executable: from generation g (0: none) to g + 1."""
        backup = self.folder.with_name(self.folder.name + ".before")
        part = backup.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(self.folder, part)
        shutil.rmtree(backup, ignore_errors=True)
        part.rename(backup)
        try:
            done = subprocess.run(shlex.split(self.command), cwd=self.folder, capture_output=True, text=True,
                                  timeout=WALL_TIME_S, check=False)
        except OSError as error:
            raise CampaignError(f"generator.calypso_command = {self.command!r}: cannot be started: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise GenerationFailed(f"CALYPSO did not end within {WALL_TIME_S:g} s in {self.folder}") from error
        if done.returncode:
            words = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise GenerationFailed(f"CALYPSO ended with exit code {done.returncode} in {self.folder}: {words[:200]}")
        try:
            following = int((self.folder / "step").read_text().split()[0])
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"{self.folder / 'step'}: missing or not a number after CALYPSO ended") from error
        if following != generation + 2:
            raise DataError(f"{self.folder / 'step'}: holds {following}, expected {generation + 2} after generation "
                            f"{generation + 1} was made; is Split = T understood by this CALYPSO?")
        self._write_state(generation + 1, population)
        shutil.rmtree(backup, ignore_errors=True)

    def _undo_if_killed(self) -> None:
        """A copy that is still there means that the start after it never ended: put it back and start again."""
        backup = self.folder.with_name(self.folder.name + ".before")
        if backup.exists():
            before = json.loads((backup / "hydroflow.json").read_text())
            if self._state_file.exists() and self.state()["generation"] > before["generation"]:
                shutil.rmtree(backup)  # ended, killed while tidying up
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.copytree(backup, self.folder)
            self._step(int(before["generation"]), int(before["population"]))

    def _write_state(self, generation: int, population: int) -> None:
        part = self._state_file.with_suffix(".part")
        part.write_text(json.dumps({"generation": generation, "population": population}))
        part.replace(self._state_file)


def _by_number(item: tuple[str, int]) -> int:
    from ase.data import atomic_numbers

    return int(atomic_numbers[item[0]])


class CalypsoGenerator:
    """CALYPSO seen as a generator.

    A request that starts at number 0 begins a run with that many structures per generation; one that starts where the last
    generation ended hands back that generation's relaxed structures (found by their ids) and returns the next. Asking
    for a generation again returns it again.

    Parameters
    ----------
    root
        Where the runs' folders are; default: ``calypso`` in the working folder.
    """

    name = "calypso"

    def __init__(self, root: Path | None = None) -> None:
        self.root = root

    def generate(
        self, campaign: Campaign, requests: Sequence[Request], pressure_gpa: float, seed: int,
        relaxed: StructureArrays | None = None,
    ) -> Generation:
        command = campaign.generator.calypso_command
        if command is None:
            raise CampaignError("generator.mix names calypso: set generator.calypso_command to the command line of your "
                                "calypso.x")
        parts, failures = [], []
        for i, request in enumerate(requests):
            try:
                crystals = self._generation(campaign, command, request, pressure_gpa, seed, relaxed)
            except GenerationFailed as error:
                failures.append(Failure(i, request.cell_id, request.count, str(error)))
                continue
            crystals = crystals[:request.count]
            made = StructureArrays.from_lists(
                [c.numbers for c in crystals], [c.fractional for c in crystals], [c.cell for c in crystals])
            made.columns |= {
                "composition_index": np.full(len(made), i), "requested_spacegroup": np.zeros(len(made), int),
                "generator": np.full(len(made), self.name, dtype=object),
                "id": np.array(self._ids(request, pressure_gpa, seed, request.first, len(made)), dtype=object)}
            parts.append(made)
            if len(made) < request.count:
                failures.append(Failure(i, request.cell_id, request.count - len(made),
                                        f"this CALYPSO run makes {len(made)} structures per generation"))
        return Generation(StructureArrays.concatenate(parts), failures)

    def _ids(self, request: Request, pressure_gpa: float, seed: int, first: int, count: int) -> list[str]:
        return structure_ids(request, pressure_gpa, seed, self.name, first + np.arange(count))

    def _generation(
        self, campaign: Campaign, command: str, request: Request, pressure_gpa: float, seed: int,
        relaxed: StructureArrays | None,
    ) -> list[Crystal]:
        if request.count == 0:
            return []
        composition = Composition.from_dict(dict(request.composition))
        symbols, counts = list(composition.symbols), list(composition.counts)
        root = self.root or Path("calypso")
        run = CalypsoRun(root / f"{request.cell_id}-{pressure_gpa:g}gpa-{seed}", command, symbols, counts)
        state = run.state()
        if state["generation"] == 0:
            if request.first:
                raise GenerationFailed(f"no CALYPSO run to go on with in {run.folder}; begin with first = 0")
            volumes = atomic_volumes(campaign, symbols, pressure_gpa)
            run.begin(input_dat(
                symbols, counts, minimum_distances(symbols, volumes, campaign.generator.minimum_distances_a),
                sum(n * volumes[s] for s, n in composition.as_dict().items()), pressure_gpa, request.count, MAX_GENERATIONS,
                campaign.generator.space_groups), request.count)
            return run.population()
        waiting = run.population()  # also goes on after a kill
        state = run.state()
        wanted = request.first // state["population"] + 1
        if request.first % state["population"] or wanted not in (state["generation"], state["generation"] + 1):
            raise GenerationFailed(f"the CALYPSO run in {run.folder} is at generation {state['generation']} of "
                                   f"{state['population']} structures; ask for first = "
                                   f"{(state['generation'] - 1) * state['population']} or the one after it")
        if wanted == state["generation"]:
            return waiting
        first = (state["generation"] - 1) * state["population"]
        ids = self._ids(request, pressure_gpa, seed, first, state["population"])
        done = _relaxed(relaxed, ids)
        if not done:
            raise GenerationFailed(f"none of the structures {ids[0]} … was handed back relaxed; CALYPSO cannot go on without")
        run.advance(done, pressure_gpa)
        return run.population()


def _relaxed(relaxed: StructureArrays | None, ids: list[str]) -> dict[int, tuple[Crystal, float]]:
    """Number in the population → relaxed structure and enthalpy, for those of these ids that are there and finite."""
    if relaxed is None or "id" not in relaxed.columns:
        return {}
    place = {name: n for n, name in enumerate(ids, 1)}
    out = {}
    for i, name in enumerate(relaxed.columns["id"]):
        enthalpy = float(relaxed.columns["enthalpy_ev"][i])
        if str(name) in place and np.isfinite(enthalpy):
            rows = slice(relaxed.offsets[i], relaxed.offsets[i + 1])
            crystal = Crystal(relaxed.numbers[rows].astype(np.int64), relaxed.fractional[rows], relaxed.cells[i])
            out[place[str(name)]] = (crystal, enthalpy)
    return out
