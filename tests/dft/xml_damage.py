"""Every way in which an XML file can lack a node: what the readers are tested with."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydroflow.errors import EngineFailure

DAMAGES: dict[str, Callable[[ElementTree.Element, int], None]] = {
    "taken out": lambda parent, i: parent.remove(parent[i]),
    "emptied": lambda parent, i: parent.__setitem__(i, ElementTree.Element(parent[i].tag, parent[i].attrib)),
    "without a number": lambda parent, i: setattr(parent[i], "text", "words"),
    "overflowed": lambda parent, i: setattr(parent[i], "text", "1.0 ****"),
}


def _places(node: ElementTree.Element, path: str = "", indices: tuple[int, ...] = ()) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, indices from the root) of every node below."""
    for i, child in enumerate(node):
        where = f"{path}/{child.tag}".lstrip("/") + (f"[{child.get('name')}]" if child.tag in ("i", "varray", "array") else "")
        yield where, (*indices, i)
        yield from _places(child, where, (*indices, i))


def verdicts(read: Callable[[Path], Any], text: str, below: tuple[str, ...], path: Path,
             kept: tuple[str, ...] = ()) -> dict[str, str]:
    """What was done → the failure's words, empty where the file was read: for one node of each name in the sections `below`.

    Sections that are neither among them nor `kept` are left out. Any other exception than :class:`EngineFailure` is the caller's.
    """
    root, found = ElementTree.fromstring(text), {}
    for child in [c for c in root if c.tag not in (*below, *kept)]:
        root.remove(child)
    for node in list(root.iter()):
        for tag in {c.tag for c in node}:
            for more in node.findall(tag)[3:] if tag not in ("i", "varray", "array") else []:
                node.remove(more)  # bands, symmetries, levels: three of a kind are enough
    places = {where: indices for where, indices in reversed(list(_places(root))) if where.split("/")[0] in below}
    for where, indices in places.items():
        for what, damage in DAMAGES.items():
            tree = copy.deepcopy(root)
            parent = tree
            for i in indices[:-1]:
                parent = parent[i]
            damage(parent, indices[-1])
            path.write_bytes(ElementTree.tostring(tree))
            try:
                read(path)
                found[f"{where} {what}"] = ""
            except EngineFailure as failure:
                found[f"{where} {what}"] = str(failure)
    return found
