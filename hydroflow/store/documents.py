"""What lives in MongoDB, as mongoengine documents: what people query and what the loop goes on from.

Structures are Parquet objects in the object store; documents carry their digests. Every value carries what it was
computed with (model checksum, DFT settings) beside it. Indexes are declared here and made by :func:`ensure_indexes`.
"""

from __future__ import annotations

from datetime import datetime, timezone

from mongoengine import (
    BinaryField,
    BooleanField,
    DateTimeField,
    DictField,
    Document,
    DynamicField,
    EmbeddedDocument,
    EmbeddedDocumentListField,
    FloatField,
    IntField,
    ListField,
    StringField,
)


def now() -> datetime:
    return datetime.now(timezone.utc)


class JobEvent(EmbeddedDocument):
    """One line of a job's history."""

    time = DateTimeField(default=now)
    state = StringField()
    host = StringField()
    reason = StringField()


class Job(Document):
    """A ledger entry; `key` is the content key of :class:`hydroflow.dispatch.job.JobSpec`. Written by the ledger only."""

    key = StringField(primary_key=True)
    kind = StringField(required=True)
    label = StringField()
    engine = StringField()
    inputs = DictField()
    files = DictField()
    resources = DictField()
    priority = IntField(default=0)
    campaigns = ListField(StringField())
    state = StringField(required=True)
    cluster = StringField()
    owner = StringField()
    lease_until = DateTimeField()
    scheduler_id = StringField()
    batch = StringField()
    """Scheduler job it was put into; its name in the queue and of its folder."""
    folder = StringField()
    """Where the current or last attempt runs on the cluster."""
    restart_from = StringField()
    """Folder of the attempt whose checkpoints the next one goes on from."""
    avoid = ListField(StringField())
    """Clusters that proved unable to run it."""
    cancel = StringField()
    """Why nobody wants it any more, until the agent has stopped it."""
    discard = BooleanField()
    """Its checkpoints are not wanted either."""
    attempt = IntField(default=0)
    """Times it was claimed for a cluster."""
    failures = IntField(default=0)
    """Verdicts of its engine against it, since the last retry by hand."""
    losses = IntField(default=0)
    """Attempts that vanished without a verdict, since the last retry by hand."""
    not_before = DateTimeField()
    adjustments = DictField()
    result = DynamicField()
    outputs = DictField()
    failure = DictField()
    cost = DictField()
    created = DateTimeField(default=now)
    finished = DateTimeField()
    history = EmbeddedDocumentListField(JobEvent)
    meta = {
        "collection": "jobs", "auto_create_index": False,
        "indexes": [
            ("state", "-priority", "created"), ("cluster", "state"), ("campaigns", "kind", "state"), "lease_until", "batch"],
    }


class Run(Document):
    """A campaign as it was started: the frozen campaign file and where the flow stands."""

    campaign = StringField(primary_key=True)
    digest = StringField(required=True)
    text = StringField(required=True)
    stage = StringField(default="new")
    message = StringField()
    started = DateTimeField(default=now)
    updated = DateTimeField(default=now)
    finished = DateTimeField()
    timings_s = DictField()
    summary = DictField()
    meta = {"collection": "runs", "auto_create_index": False, "indexes": ["-updated"]}


class Iteration(Document):
    """One turn of concurrent learning: what was explored, selected, labelled, trained, and the errors found.

    `stage` is ``bootstrap``, ``stage1`` or ``stage2``. `quarantined` counts failure codes, `held` maps the key of each label
    held for review to the reason. Deviations in eV/Å, errors in meV/atom and meV/Å.
    """

    campaign = StringField(required=True)
    stage = StringField(required=True)
    index = IntField(required=True)
    explored = DictField()
    selected = IntField()
    labelled = IntField()
    quarantined = DictField()
    held = DictField()
    dataset = StringField()
    models = ListField(StringField())
    errors = DictField()
    goal = DictField()
    reached = BooleanField(default=False)
    started = DateTimeField(default=now)
    finished = DateTimeField()
    meta = {"collection": "iterations", "auto_create_index": False,
            "indexes": [{"fields": ("campaign", "stage", "index"), "unique": True}]}


class Dataset(Document):
    """A version of the labelled frames; `digest` is the manifest's object digest."""

    digest = StringField(primary_key=True)
    campaign = StringField()
    parent = StringField()
    label_settings = StringField(required=True)
    frames = IntField()
    counts = DictField()
    split = DictField()
    parts = ListField(StringField())
    """Digests of the Parquet objects with its frames, in the manifest's order."""
    created = DateTimeField(default=now)
    meta = {"collection": "datasets", "auto_create_index": False, "indexes": [("campaign", "-created")]}


class ModelRecord(Document):
    """A trained model; `digest` is the checkpoint's object digest. `role` is ``lam`` or ``tc``."""

    digest = StringField(primary_key=True)
    campaign = StringField()
    role = StringField(default="lam")
    job = StringField()
    dataset = StringField()
    parents = ListField(StringField())
    seed = IntField()
    type_map = ListField(StringField())
    engine = StringField()
    input = DictField()
    metrics = DictField()
    learning_curve = DictField()
    scope = StringField()
    created = DateTimeField(default=now)
    meta = {"collection": "models", "auto_create_index": False, "indexes": [("campaign", "role", "-created")]}


class Verdict(EmbeddedDocument):
    """One filter's decision on one candidate."""

    filter = StringField(required=True)
    passed = BooleanField(required=True)
    value = FloatField()
    threshold = FloatField()
    settings = StringField()
    reason = StringField()


class Candidate(Document):
    """A relaxed structure worth asking about, with every property and the reason it was kept or rejected.

    Energies in eV/atom, lengths in Å, frequencies in THz, temperatures in K, pressures in GPa.
    """

    campaign = StringField(required=True)
    structure_id = StringField(required=True)
    shard = StringField()
    row = IntField()
    formula = StringField(required=True)
    reduced_formula = StringField()
    system = StringField(required=True)
    elements = ListField(StringField())
    natoms = IntField()
    pressure_gpa = FloatField()
    structure = BinaryField()
    """Parquet of this one structure (:class:`hydroflow.arrays.StructureArrays`)."""
    spacegroup = IntField()
    spacegroup_symbol = StringField()
    prototype = StringField()
    volume_a3 = FloatField()
    enthalpy_lam_ev = FloatField()
    enthalpy_dft_ev = FloatField()
    ehull_lam_ev = FloatField()
    ehull_lam_error_ev = FloatField()
    ehull_dft_ev = FloatField()
    decomposition = DictField()
    atomic_h_fraction = FloatField()
    min_frequency_thz = FloatField()
    hydrogen_dos_share = FloatField()
    measured = DictField()
    """Values of filters from outside packages, by filter name."""
    verdicts = EmbeddedDocumentListField(Verdict)
    stage = StringField(default="searched")
    """Where in the funnel it stands: searched, the name of the filter that rejected it, ``waiting`` (beyond the budget of DFT
    relaxations), ``passed``, ``epc``."""
    rejected_by = StringField()
    model = StringField()
    label_settings = StringField()
    structure_dft = BinaryField()
    jobs = ListField(StringField())
    duplicate_of = StringField()
    """Id of the structure that became the same crystal when DFT relaxed both; that one gets EPC."""
    epc_status = StringField()
    """None, ``queued``, ``done``, ``failed``."""
    epc_estimate_core_hours = FloatField()
    """What its EPC was expected to cost when it was last considered for a batch; `cost_core_hours` is what it did cost."""
    epc = DictField()
    """Result of the EPC chain: lambda, omega_log_K, omega2_K, tc_K per μ*, broadenings, checks, protocol, q points."""
    usable = BooleanField()
    lambda_ = FloatField(db_field="lambda")
    omega_log_k = FloatField()
    tc_k = FloatField()
    """Allen–Dynes Tc at the first μ* of the campaign."""
    tc_mcmillan_k = FloatField()
    tc_predicted_k = FloatField()
    tc_predicted_error_k = FloatField()
    cost_core_hours = FloatField()
    updated = DateTimeField(default=now)
    meta = {
        "collection": "candidates", "auto_create_index": False,
        "indexes": [
            {"fields": ("campaign", "structure_id"), "unique": True},
            ("campaign", "ehull_lam_ev"),
            ("campaign", "stage", "ehull_lam_ev"),
            ("campaign", "system", "ehull_lam_ev"),
            ("campaign", "elements", "ehull_lam_ev"),
            ("campaign", "formula", "ehull_lam_ev"),
            ("campaign", "-tc_k"),
            ("campaign", "-tc_predicted_k"),
            ("campaign", "ehull_dft_ev"),
            ("campaign", "rejected_by"),
            ("campaign", "epc_status"),
        ],
    }


DOCUMENTS = (Job, Run, Iteration, Dataset, ModelRecord, Candidate)


def ensure_indexes() -> None:
    """Create every declared index; idempotent."""
    for document in DOCUMENTS:
        document.ensure_indexes()
