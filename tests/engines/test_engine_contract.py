"""The conformance kit on hydroflow's own engines: the small ones of the dispatcher's tests and real pw.x."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Labels
from hydroflow.dft.batch import label_specs
from hydroflow.dft.jobs import Label
from hydroflow.dft.settings import label_settings
from hydroflow.dispatch.job import JobSpec
from hydroflow.store.objects import DirectoryObjects, ObjectStore
from hydroflow.testing.engine_kit import EngineContract
from tests.dispatch.engines import ECHO, PYTHON, Echo, Square
from tests.fixtures_store import ROOT


class TestShellEngine(EngineContract):
    def make(self) -> Echo:
        return Echo()

    def job(self) -> JobSpec:
        return JobSpec(ECHO, {"value": [1, 2]}, "1")


class TestPythonEngine(EngineContract):
    def make(self) -> Square:
        return Square()

    def job(self) -> JobSpec:
        return JobSpec(PYTHON, {"x": 3, "steps": 3}, "1")

    def executables(self) -> Mapping[str, str]:
        return {"python": f"env PYTHONPATH={ROOT} {sys.executable}"}


@pytest.mark.engine
class TestPwLabel(EngineContract):
    stored: ClassVar[ObjectStore]
    spec: ClassVar[JobSpec]

    def make(self) -> Label:
        return Label()

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Objects for the pseudopotentials of one CaH cell."""
        cells = StructureArrays.from_lists(
            [np.array([20, 1])], [np.array([[0, 0, 0], [0.5, 0.5, 0.5]])], [np.diag([2.2, 2.2, 2.3])])
        cls.stored = DirectoryObjects(tmp_path_factory.mktemp("objects"))
        (cls.spec,) = label_specs(
            SimpleNamespace(objects=cls.stored), cells, label_settings(Labels(protocol="fast"), ["H", "Ca"]))

    def job(self) -> JobSpec:
        return self.spec

    def same(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Without pw.xml the text output is read, which has fewer digits."""
        return (abs(one["energy_ev"] - other["energy_ev"]) < 1e-5
                and np.allclose(one["forces_ev_a"], other["forces_ev_a"], atol=1e-4)
                and np.allclose(one["virial_ev"], other["virial_ev"], atol=1e-3))

    def objects(self) -> ObjectStore:
        return self.stored
