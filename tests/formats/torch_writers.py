"""Writers of torch files and Meta checkpoints for tests, independent of the readers under test."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from formats.writers import Tensors, hf_config, hf_tensors

from rllama.config import ModelConfig
from rllama.quant import quantize

STORAGE = {"F16": "HalfStorage", "BF16": "BFloat16Storage", "F32": "FloatStorage"}
_WIDTH = {"F16": 2, "BF16": 2, "F32": 4}

# ---- zip ----


@dataclass
class RawMember:
    """One member; every number that headers repeat can be falsified before `to_bytes`."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0x808  # UTF-8, and a data descriptor behind the payload, as torch writes
    crc: int | None = None
    size: int | None = None
    local_name: bytes | None = None
    local_sizes: tuple[int, int, int] = (0, 0, 0)
    descriptor: bytes | None = None
    attributes: int = 0
    offset: int | None = None
    wide: bool = False

    @property
    def payload(self) -> bytes:
        if self.method != 8:
            return self.data
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(self.data) + packer.flush()

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Checksum, stored size, size."""
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        size = len(self.data) if self.size is None else self.size
        return crc, len(self.payload) if self.method == 8 else size, size


@dataclass
class RawZip:
    """All parts of a zip archive; `align` is where payloads begin, as torch pads them."""

    members: list[RawMember] = field(default_factory=list)
    align: int = 64
    wide_end: bool = True
    head: bytes = b""
    tail: bytes = b""
    comment: bytes = b""
    count: int | None = None
    end_fields: dict[str, int] = field(default_factory=dict)
    gap: bytes = b""

    def local(self, member: RawMember, at: int) -> bytes:
        name = member.name if member.local_name is None else member.local_name
        pad = -(at + 30 + len(name) + 4) % self.align
        extra = struct.pack("<2sH", b"FB", pad) + b"Z" * pad
        crc, stored, size = member.local_sizes
        return struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, member.flags, member.method, 0, 0, crc,
                           stored, size, len(name), len(extra)) + name + extra  # fmt: skip

    def central(self, member: RawMember, at: int) -> bytes:
        crc, stored, size = member.numbers
        extra = b""
        if member.wide or max(stored, size) >= 2**32:
            extra = struct.pack("<2H3Q", 1, 24, size % 2**64, stored % 2**64, at)
            stored = size = at = 2**32 - 1
        return struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 0, 0, member.flags, member.method, 0, 0,
                           crc, stored, size, len(member.name), len(extra), 0, 0, 0,
                           member.attributes, at) + member.name + extra  # fmt: skip

    def to_bytes(self) -> bytes:
        out, directory = bytearray(self.head), b""
        for member in self.members:
            at = len(out) if member.offset is None else member.offset
            out += self.local(member, len(out)) + member.payload
            if member.flags & 8:
                numbers = struct.pack("<3L", *(n % 2**32 for n in member.numbers))
                sizes = numbers if member.descriptor is None else member.descriptor
                out += b"PK\x07\x08" + sizes
            directory += self.central(member, at)
        out += self.gap
        start, n_bytes = len(out), len(directory)
        out += directory
        count = len(self.members) if self.count is None else self.count
        if self.wide_end:
            fields = {"count": count, "size": n_bytes, "start": start, **self.end_fields}
            end64 = len(out)
            out += struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0x1E03, 45, 0, 0, fields["count"],
                               fields["count"], fields["size"], fields["start"])  # fmt: skip
            out += struct.pack("<4sLQL", b"PK\x06\x07", 0, fields.get("at", end64), 1)
        short = fields_of(count, n_bytes, start, self.end_fields)
        out += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, short[0], short[0], short[1], short[2],
                           len(self.comment))  # fmt: skip
        return bytes(out) + self.comment + self.tail


def fields_of(count: int, n_bytes: int, start: int, changes: Mapping[str, int]) -> list[int]:
    found = {"count16": count, "size32": n_bytes, "start32": start} | dict(changes)
    return [found[key] for key in ("count16", "size32", "start32")]


# ---- pickle ----


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def ordered_dict() -> bytes:
    return name("collections", "OrderedDict") + b")R"


def storage(kind: str, key: str, count: int, place: str = "cpu") -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text(place), whole(count)) + (
        b"Q"
    )


def tensor(
    stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0
) -> bytes:
    """A call of torch's function, strides those of rows that follow each other."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + tuple_of(stored, whole(offset), tuple_of(*map(whole, shape)),
                   tuple_of(*map(whole, strides)), b"\x89", ordered_dict())
        + b"R"
    )  # fmt: skip


def dictionary(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def pickle_of(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


# ---- torch files ----


def torch_zip(
    pickled: bytes, storages: Mapping[str, bytes], root: str = "archive", method: int = 0
) -> RawZip:
    """The parts of a torch file."""
    members = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": data for key, data in storages.items()}
    return RawZip([RawMember(f"{root}/{key}".encode(), data, method)
                   for key, data in members.items()])  # fmt: skip


def torch_parts(tensors: Tensors, dtype: str = "F16") -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The entries of a state dictionary, and the storages that they mention."""
    entries, storages = {}, {}
    for key, (tensor_name, values) in enumerate(tensors.items()):
        entries[tensor_name] = tensor(storage(STORAGE[dtype], str(key), values.size), values.shape)
        storages[str(key)] = quantize(dtype, values).tobytes()
    return entries, storages


def torch_bytes(tensors: Tensors, dtype: str = "F16", **options: object) -> bytes:
    """A torch file with a state dictionary."""
    entries, storages = torch_parts(tensors, dtype)
    pickled = pickle_of(dictionary(entries))
    return torch_zip(pickled, storages, **options).to_bytes()  # type: ignore[arg-type]


def unzip(raw: RawZip, folder: Path) -> Path:
    """What unzipping makes of an archive."""
    for member in raw.members:
        path = folder / member.name.decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(member.data)
    return folder


def write_hf_torch(
    folder: str | Path, cfg: ModelConfig, tensors: Tensors, dtype: str = "F16", n_shards: int = 1
) -> Path:
    """Write config.json and pytorch_model.bin, or its pieces and their index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(cfg)))
    theirs = hf_tensors(cfg, tensors)
    if n_shards == 1:
        (folder / "pytorch_model.bin").write_bytes(torch_bytes(theirs, dtype))
        return folder
    names, weight_map = list(theirs), {}
    for shard in range(n_shards):
        file_name = f"pytorch_model-{shard + 1:05d}-of-{n_shards:05d}.bin"
        part = names[len(names) * shard // n_shards : len(names) * (shard + 1) // n_shards]
        weight_map |= dict.fromkeys(part, file_name)
        (folder / file_name).write_bytes(torch_bytes({key: theirs[key] for key in part}, dtype))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


# ---- Meta's layout ----

_META = {
    "attn_norm": "attention_norm", "wq": "attention.wq", "wk": "attention.wk",
    "wv": "attention.wv", "wo": "attention.wo", "ffn_norm": "ffn_norm",
    "w_gate": "feed_forward.w1", "w_down": "feed_forward.w2", "w_up": "feed_forward.w3",
    "embed": "tok_embeddings", "final_norm": "norm", "lm_head": "output",
}  # fmt: skip


def meta_name(canonical: str) -> str:
    layer, dot, last = canonical.rpartition(".")
    return f"{layer}{dot}{_META[last]}.weight"


def meta_shard(
    cfg: ModelConfig, tensors: Tensors, shard: int, n_shards: int, *, embed_rows: bool = False
) -> Tensors:
    """What one of n shards holds, under Meta's names."""
    found = {}
    for canonical, values in tensors.items():
        last = canonical.rpartition(".")[2]
        axis = 1 if last in ("wo", "w_down") or (last == "embed" and not embed_rows) else 0
        if values.ndim == 2:
            n = n_shards
            if last in ("wk", "wv"):  # a head at least: shards next to each other share it
                n = min(n_shards, cfg.n_kv_heads)
            pieces = np.split(values, n, axis=axis)
            values = np.ascontiguousarray(pieces[shard * n // n_shards])
        found[meta_name(canonical)] = values
    return found


def params_json(cfg: ModelConfig, **changes: object) -> dict[str, object]:
    numbers = {"dim": cfg.dim, "n_layers": cfg.n_layers, "n_heads": cfg.n_heads,
               "n_kv_heads": cfg.n_kv_heads, "vocab_size": -1, "multiple_of": 4,
               "norm_eps": cfg.norm_eps}  # fmt: skip
    return {key: value for key, value in {**numbers, **changes}.items() if value is not None}


def write_meta(
    folder: str | Path,
    cfg: ModelConfig,
    tensors: Tensors,
    dtype: str = "F16",
    n_shards: int = 1,
    *,
    unzipped: bool = False,
    embed_rows: bool = False,
    params: Mapping[str, object] | None = None,
) -> Path:
    """Write params.json and consolidated.NN.pth, or the folders that these unzip to."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params or params_json(cfg)))
    for shard in range(n_shards):
        part = meta_shard(cfg, tensors, shard, n_shards, embed_rows=embed_rows)
        entries, storages = torch_parts(part, dtype)
        stem = f"consolidated.{shard:02d}"
        raw = torch_zip(pickle_of(dictionary(entries)), storages, root=stem)
        if unzipped:
            unzip(raw, folder)
        else:
            (folder / f"{stem}.pth").write_bytes(raw.to_bytes())
    return folder
