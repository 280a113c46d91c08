"""Archives from a cluster: nothing of them lands outside of their folder, on any Python."""

import io
import tarfile

import pytest

from hydroflow.dispatch.site import _unpack


def archive(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarFile:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as tar:
        for member, its_kind, its_link in (("job/pw.out", tarfile.REGTYPE, ""), (name, kind, link)):
            info = tarfile.TarInfo(member)
            info.type, info.linkname, info.size = its_kind, its_link, 4 if its_kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"text"))
    written.seek(0)
    return tarfile.open(fileobj=written)


@pytest.fixture(params=["filters", "none"])
def _python(request, monkeypatch):
    if request.param == "none":  # that of Debian 12
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no tarfile filters")


@pytest.mark.usefixtures("_python")
def test_files_and_links_inside_arrive(tmp_path):
    _unpack(archive("job/last.out", tarfile.SYMTYPE, "pw.out"), tmp_path)
    assert (tmp_path / "job" / "last.out").read_text() == "text"


@pytest.mark.usefixtures("_python")
@pytest.mark.parametrize("member", [("../out",), ("job/etc", tarfile.SYMTYPE, "/etc"), ("job/up", tarfile.SYMTYPE, "../../up"),
                                    ("job/tty", tarfile.CHRTYPE)])
def test_what_leads_outside_is_refused(tmp_path, member):
    folder = tmp_path / "staging"
    folder.mkdir()
    with pytest.raises(tarfile.TarError):
        _unpack(archive(*member), folder)
    assert [p.name for p in tmp_path.iterdir()] == ["staging"]
