"""Keeping the object store whole and small: which objects are missing or damaged, which nobody refers to."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hydroflow.store import Store
from hydroflow.store.documents import DOCUMENTS
from hydroflow.store.objects import ObjectDamaged, ObjectMissing

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass
class Verification:
    """What `hydroflow storage verify` found. Digests, and the keys of jobs whose kept files or inputs they are."""

    checked: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    redo: list[str] = field(default_factory=list)
    """Jobs that were done and must be computed again to have their files back."""


def verify(store: Store, on_progress: Callable[[int], None] | None = None) -> Verification:
    """Read every stored object and compare it with its digest; then look for objects that records refer to and that
    are not there."""
    out, there = Verification(), set()
    for digest, size, _ in store.objects.list():
        try:
            store.objects.get(digest)
            there.add(digest)
        except ObjectDamaged:
            out.damaged.append(digest)
        except ObjectMissing:
            continue
        out.checked += 1
        out.bytes += size
        if on_progress is not None and out.checked % 100 == 0:
            on_progress(out.checked)
    out.missing = sorted(d for d in references(store) if d not in there and d not in out.damaged)
    lost = {*out.missing, *out.damaged}
    if lost:
        for row in store.database["jobs"].find({"state": "done"}, {"outputs": 1}):
            if lost & set(_digests(row.get("outputs") or {})):
                out.redo.append(row["_id"])
    return out


def references(store: Store) -> set[str]:
    """Every digest that a document or a manifest names, and those that such objects name in turn."""
    found: set[str] = set()
    for document in DOCUMENTS:
        for row in store.database[document._get_collection_name()].find():
            found |= set(_digests(row))
    for name in store.objects.manifests():
        found |= set(_digests(store.objects.get_manifest(name)))
    # small JSON objects (a dataset's manifest) may name others
    todo = list(found)
    while todo:
        for inner in _named_inside(store, todo.pop()):
            if inner not in found:
                found.add(inner)
                todo.append(inner)
    return found


def _named_inside(store: Store, digest: str) -> list[str]:
    try:
        if store.objects.size(digest) > 16 << 20:
            return []
        data = store.objects.get(digest)
    except (ObjectMissing, ObjectDamaged):
        return []
    if data[:1] not in (b"{", b"["):
        return []
    try:
        return list(_digests(json.loads(data)))
    except ValueError:
        return []


def _digests(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _DIGEST.findall(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _digests(key)
            yield from _digests(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _digests(inner)


def unreferenced(store: Store, older_than_s: float = 86_400.0) -> list[tuple[str, int]]:
    """(digest, bytes) of objects that nothing refers to. Young ones are spared: their record may be on its way."""
    # the list first, then the references: an object that is recorded in between is found referenced
    old = [(digest, size) for digest, size, written in store.objects.list() if time.time() - written > older_than_s]
    used = references(store)
    return [(digest, size) for digest, size in old if digest not in used]
