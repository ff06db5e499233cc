"""Torch files: zip archives, pickles, tensors of every shape, read without torch."""

from __future__ import annotations

import argparse
import collections
import io
import logging
import mmap
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from torch_writers import (
    RawZip,
    dictionary,
    pickle_of,
    storage,
    tensor,
    torch_bytes,
    torch_parts,
    torch_zip,
    unzip,
)

from rllama.errors import FormatError, MemoryPlanError, UnsafeFileError, UnsupportedError
from rllama.formats import torch_file, zip_file
from rllama.formats.mapped_file import MappedFile
from rllama.formats.safe_pickle import Namespace, Words, read_pickle
from rllama.formats.torch_file import TorchFile
from rllama.formats.zip_file import ZipFile
from rllama.memory import Available

RNG = np.random.default_rng(4)
TENSORS = {
    "a.weight": RNG.standard_normal((3, 4)).astype(np.float32),
    "b": RNG.standard_normal(7).astype(np.float32),
}
Open = Callable[[Path, bytes], TorchFile]
PLAIN = Words({}, frozenset({"a.b"}), {}, lambda arguments, where: arguments)


@pytest.fixture
def opened() -> Iterator[Open]:
    """Writes a file and opens it; closed when the test is over."""
    files: list[TorchFile] = []

    def open_file(path: Path, data: bytes) -> TorchFile:
        path.write_bytes(data)
        files.append(TorchFile(str(path)))
        return files[-1]

    yield open_file
    for file in files:
        file.close()


def values(file: TorchFile) -> dict[str, np.ndarray]:
    return {name: file.view(name).to_f32() for name in file.tensors}


@pytest.mark.parametrize("root", ["archive", "consolidated.00", "x y"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_torch_file_gives_names_shapes_and_bytes(
    opened: Open, tmp_path: Path, dtype: str, root: str
) -> None:
    file = opened(tmp_path / "m", torch_bytes(TENSORS, dtype, root=root))
    entries, storages = torch_parts(TENSORS, dtype)
    assert list(file.tensors) == list(entries)
    for key, name in enumerate(entries):
        view = file.view(name)
        assert (view.dtype.name, view.shape) == (dtype, TENSORS[name].shape)
        assert bytes(view.data) == storages[str(key)]
        assert f":{name}@0x" in view.origin


def test_torch_file_weights_are_mapped_not_copied(opened: Open, tmp_path: Path) -> None:
    file = opened(tmp_path / "m", torch_bytes(TENSORS, "F32"))
    for name in TENSORS:
        assert isinstance(file.view(name).data.obj, mmap.mmap)


@pytest.mark.parametrize("method", [0, 8])
@pytest.mark.parametrize("wide_end", [False, True])
def test_torch_file_of_other_zip_writers(
    opened: Open, tmp_path: Path, method: int, wide_end: bool
) -> None:
    entries, storages = torch_parts(TENSORS, "F32")
    raw = torch_zip(pickle_of(dictionary(entries)), storages, method=method)
    raw.wide_end, raw.align = wide_end, 1
    for member in raw.members:
        member.flags, member.wide = 0, True
        member.local_sizes = member.numbers
    file = opened(tmp_path / "m", raw.to_bytes())
    for name, want in TENSORS.items():
        np.testing.assert_array_equal(file.view(name).to_f32(), want)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_torch_file_written_by_the_standard_library(
    opened: Open, tmp_path: Path, method: int
) -> None:
    entries, storages = torch_parts(TENSORS, "F16")
    raw = torch_zip(pickle_of(dictionary(entries)), storages)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for member in raw.members:
            with archive.open(member.name.decode(), "w", force_zip64=True) as out:
                out.write(member.data)
    file = opened(tmp_path / "m", data.getvalue())
    assert bytes(file.view("b").data) == storages["1"]


def test_our_zip_is_a_zip() -> None:
    archive = zipfile.ZipFile(io.BytesIO(torch_bytes(TENSORS)))
    assert archive.testzip() is None
    assert archive.read("archive/version") == b"3\n"


def test_unzipped_folder_is_the_same(tmp_path: Path) -> None:
    entries, storages = torch_parts(TENSORS, "F32")
    raw = torch_zip(pickle_of(dictionary(entries)), storages)
    unzip(raw, tmp_path)
    for path in (tmp_path, tmp_path / "archive"):
        file = TorchFile(str(path))
        for name, want in TENSORS.items():
            np.testing.assert_array_equal(file.view(name).to_f32(), want)
        file.seal()
        file.close()


def test_tensors_may_share_a_storage_from_an_offset_on(opened: Open, tmp_path: Path) -> None:
    stored = storage("FloatStorage", "0", 24, place="cuda:0")
    entries = {"all": tensor(stored, (4, 6)), "part": tensor(stored, (2, 6), offset=12),
               "one": tensor(stored, (), offset=5), "none": tensor(stored, (0, 6))}  # fmt: skip
    x = RNG.standard_normal(24).astype("<f4")
    file = opened(tmp_path / "m", torch_zip(pickle_of(dictionary(entries)), {"0": x.tobytes()})
                  .to_bytes())  # fmt: skip
    got = values(file)
    np.testing.assert_array_equal(got["all"], x.reshape(4, 6))
    np.testing.assert_array_equal(got["part"], x[12:].reshape(2, 6))
    assert got["one"] == x[5]
    assert got["none"].size == 0


def test_tensors_out_of_order_are_copied_with_a_note(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = storage("HalfStorage", "0", 24)
    entries = {"turned": tensor(stored, (6, 4), (1, 6)), "every_other": tensor(stored, (4,), (2,)),
               "repeated": tensor(stored, (3, 4), (0, 1))}  # fmt: skip
    x = RNG.standard_normal(24).astype("<f2")
    data = torch_zip(pickle_of(dictionary(entries)), {"0": x.tobytes()}).to_bytes()
    with caplog.at_level(logging.INFO):
        got = values(opened(tmp_path / "m", data))
    assert caplog.text.count("copied") == 3
    np.testing.assert_array_equal(got["turned"], x.reshape(4, 6).T)
    np.testing.assert_array_equal(got["every_other"], x[:8:2])
    np.testing.assert_array_equal(got["repeated"], np.stack([x[:4]] * 3))


def test_a_huge_copy_is_refused(opened: Open, tmp_path: Path) -> None:
    stored = storage("HalfStorage", "0", 4)
    entries = {"w": tensor(stored, (2**40, 4), (0, 1))}
    data = torch_zip(pickle_of(dictionary(entries)), {"0": bytes(8)}).to_bytes()
    with pytest.raises(MemoryPlanError, match="do not lie in order"):
        opened(tmp_path / "m", data).view("w")


def test_deflated_members_beyond_the_memory_are_refused(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = RNG.standard_normal(5 << 20).astype("<f4")
    entries = {"w": tensor(storage("FloatStorage", "0", x.size), (x.size,))}
    data = torch_zip(pickle_of(dictionary(entries)), {"0": x.tobytes()}, method=8).to_bytes()
    monkeypatch.setattr(zip_file, "available_memory", lambda: Available(1 << 20, "a test"))
    with pytest.raises(MemoryPlanError, match="unpack the archive"):
        opened(tmp_path / "m", data).view("w")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_the_standard_library_are_read(protocol: int) -> None:
    value = {"a": [1, -1, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**40, -(2**63)],
             "b": (None, True, False, 2.5, "x" * 300, ""), "c": {}, "d": [], 5: (), "e": (1, 2),
             "f": (1, 2, 3), "g": ((1,),)}  # fmt: skip
    shared = ["twice"]
    value["s"], value["t"] = shared, shared
    got = read_pickle(pickle.dumps(value, protocol), "p", PLAIN)
    assert got == value
    assert got["s"] is got["t"]


def test_names_become_stand_ins() -> None:
    assert read_pickle(pickle_of(b"ca\nb\n"), "p", PLAIN).text == "a.b"
    ours = torch_file._WORDS
    state = argparse.Namespace(dim=3)
    got = read_pickle(pickle.dumps({"args": state}, 2), "p", ours)
    assert type(got["args"]) is Namespace
    assert got["args"].values == {"dim": 3}
    ordered = collections.OrderedDict(a=1)
    ordered._metadata = {"x": 1}  # type: ignore[attr-defined]
    assert read_pickle(pickle.dumps(ordered, 2), "p", ours) == {"a": 1}
    assert read_pickle(pickle.dumps(b"\x00\xff", 2), "p", ours) == b"\x00\xff"


class Trap:
    """Its pickle asks for a file to be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_calls_is_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps({"w": Trap(mark)}, protocol)
    with pytest.raises(UnsafeFileError, match=r"names '.*'; .* never executed"):
        read_pickle(data, "p", torch_file._WORDS)
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists()


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols_are_refused_by_name(protocol: int) -> None:
    with pytest.raises(UnsupportedError, match=r"protocol 0 or 1.*torch\.save"):
        read_pickle(pickle.dumps({"a": 1}, protocol), "p", PLAIN)


def test_zip_without_checksums_is_read(tmp_path: Path) -> None:
    raw = RawZip()
    raw.members = torch_zip(pickle_of(b"}"), {"0": b"abcd"}).members
    for member in raw.members:
        member.crc = 0
    (tmp_path / "m").write_bytes(raw.to_bytes())
    with MappedFile(str(tmp_path / "m")) as file:
        found = ZipFile(file)
        assert bytes(found.view(found.members["archive/data/0"])) == b"abcd"
        assert found.read(found.members["archive/data.pkl"], 100) == pickle_of(b"}")
        with pytest.raises(FormatError, match="more than 3 are refused"):
            found.read(found.members["archive/data/0"], 3)


def test_files_of_torch_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(24.0).reshape(4, 6)
    tied = torch.nn.Linear(3, 2, bias=False)
    state = collections.OrderedDict(
        wide=x, turned=x.T, part=x[1:3], half=x.half(), brain=x.bfloat16(), one=torch.tensor(2.5),
        parameter=torch.nn.Parameter(x), **{"m." + k: v for k, v in tied.state_dict().items()},
    )  # fmt: skip
    for protocol in (2, 3, 4, 5):
        path = tmp_path / f"p{protocol}"
        torch.save({"model": state, "step": 3}, path, pickle_protocol=protocol)
        file = TorchFile(str(path))
        assert file.tree["step"] == 3
        for name, want in state.items():
            np.testing.assert_array_equal(
                file.view(name).to_f32(), want.detach().float().numpy(), err_msg=name
            )
        file.seal()
        file.close()
