"""Many small files in one object: a pack, an ordinary tar archive, with an address for each member.

What a job keeps only to prove its result is small and never read by another job; ten thousand labels would make twenty
thousand objects of it, each a request or two to an S3 store and a file on a disk. Files of the jobs that end together go
into one object instead. An address, ``PACK#OFFSET+BYTES+SHA256``, stands in a record where a digest would; the pack can
also be opened with ``tar``.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hydroflow.store.objects import ObjectDamaged, ObjectStore, digest_of, digest_of_file

LARGE_BYTES = 4 << 20
"""Files above this are objects of their own: damage to a pack should not cost much."""
_ADDRESS = re.compile(r"(sha256:[0-9a-f]{64})#(\d+)\+(\d+)\+([0-9a-f]{64})")


def put_pack(objects: ObjectStore, files: Mapping[str, Path]) -> dict[str, str]:
    """Store files together; name → address, or digest of those that are large or alone.

    Parameters
    ----------
    files
        Name inside the pack → file. Names must not repeat; ``KEY/pw.out.gz`` is usual.
    """
    small = {name: path for name, path in files.items() if path.stat().st_size <= LARGE_BYTES}
    if len(small) < 2:
        small = {}
    found = {name: objects.put_file(path) for name, path in files.items() if name not in small}
    if not small:
        return found
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        members = {}
        # the same files make the same pack: no times or owners, one order
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, path in sorted(small.items()):
                member = tarfile.TarInfo(name)
                member.size = path.stat().st_size
                with path.open("rb") as handle:
                    tar.addfile(member, handle)
                members[name] = (member.size, digest_of_file(path).removeprefix("sha256:"))
        archive.flush()
        with tarfile.open(archive.name) as tar:
            places = {member.name: member.offset_data for member in tar}
        pack = objects.put_file(archive.name)
    return found | {name: f"{pack}#{places[name]}+{size}+{checksum}" for name, (size, checksum) in members.items()}


def read(objects: ObjectStore, address: str) -> bytes:
    """The bytes of an address or of a plain digest, verified.

    Raises
    ------
    ObjectMissing, ObjectDamaged, DataError
        as the object store does.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return objects.get(address)
    pack, offset, size, checksum = found.group(1), int(found.group(2)), int(found.group(3)), found.group(4)
    data = objects.get_range(pack, offset, size)
    if digest_of(data) != f"sha256:{checksum}":
        raise ObjectDamaged(f"a file inside the pack {pack} is damaged; run `hydroflow storage verify` to see which jobs must "
                            "be redone")
    return data
