"""torch rows of the corpus of bad files: what pickles ask for, and impossible tensors."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from hostile_case import Case
from hostile_torch import (
    CFG,
    ENTRIES,
    FIRST,
    GOOD_PICKLE,
    MODEL,
    PART,
    STORAGES,
    beside,
    instead,
    pickled,
    place,
)
from torch_writers import (
    name,
    ordered_dict,
    pickle_of,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_of,
    whole,
    write_meta,
)  # fmt: skip

from rllama.errors import (
    ConfigError,
    FormatError,
    MemoryPlanError,
    UnsafeFileError,
    UnsupportedError,
)


def place_pickle(folder: Path, data: bytes) -> Path:
    """A folder with an unzipped shard that has these bytes as its pickle."""
    write_meta(folder, CFG, MODEL, "F32", unzipped=True)
    (folder / "consolidated.00" / "data.pkl").write_bytes(data)
    return folder


def cases() -> list[Case]:
    """All cases about pickles."""
    parts = (_calls, _opcodes, _numbers, _persistent_ids, _tensors)
    return [case for part in parts for case in part()]


def _calls() -> Iterator[Case]:
    dangerous = (
        ("os", "system"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"),
        ("builtins", "__import__"), ("pkgutil", "resolve_name"), ("operator", "attrgetter"),
        ("functools", "partial"), ("nt", "system"), ("posix", "system"), ("subprocess", "Popen"),
        ("torch.serialization", "os.system"), ("torch", "load"), ("numpy", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("collections", "OrderedDict.__init__"),
        ("torch.storage", "_load_from_bytes"), ("builtins", "dict"), ("", ""), ("a.b", "c.d"),
    )  # fmt: skip
    for module, attribute in dangerous:
        call = name(module, attribute) + tuple_of(text("true")) + b"R"
        shown = f"{module}.{attribute}".replace(".", "_")
        yield pickled("P-1", f"call_{shown}", beside(call), UnsafeFileError, "it names")
        yield pickled(
            "P-1", f"name_{shown}", beside(name(module, attribute)), UnsafeFileError, "it names"
        )
    stack = text("os") + b"q\x01" + text("system") + b"q\x02" + b"h\x01h\x02\x93)R"
    yield pickled("P-2", "stack_global", beside(stack), UnsafeFileError, "'os.system'")
    dotted = text("torch.serialization") + text("os.system") + b"\x93"
    yield pickled("P-2", "dotted", beside(dotted), UnsafeFileError, "it names")
    yield pickled("P-2", "newline", beside(b"cos\nsystem\n"), UnsafeFileError, "'os.system'")
    yield pickled("P-2", "carriage_return", beside(b"cos\r\nsystem\r\n"), UnsafeFileError, "names")
    yield pickled("P-2", "no_newline", pickle_of(b"cos"), FormatError, "does not end")
    long = b"c" + b"a" * 5000 + b"\nb\n"
    yield pickled("P-2", "long_name", beside(long), FormatError, "does not end")
    yield pickled("P-2", "not_text", beside(b"K\x01K\x02\x93"), FormatError, "whose name is")
    yield pickled("P-2", "not_utf8", beside(b"c\xff\nb\n"), FormatError, "not UTF-8")
    for variant, code in (
        ("INST", b"(ios\nsystem\n"), ("OBJ", b"(" + name("os", "system") + b"o"),
        ("EXT1", b"\x82\x01"), ("EXT2", b"\x83\x01\x00"), ("EXT4", b"\x84\x01\x00\x00\x00"),
        ("NEWOBJ_EX", name("collections", "OrderedDict") + b")}\x92"), ("PERSID", b"P0\n"),
    ):  # fmt: skip
        yield pickled("P-3", variant, beside(code), UnsafeFileError, f"names|{variant}")
    state = b"}(" + text("__class__") + text("x") + b"u"
    for variant, target in (("list", b"]"), ("text", text("x")), ("tensor", ENTRIES[FIRST])):
        yield pickled("P-3", f"build_{variant}", beside(target + state + b"b"), UnsafeFileError)
    yield pickled("P-3", "build_tuple_state", beside(b"})b"), UnsafeFileError, "a state that is")
    for variant, called in (
        ("text", text("x")),
        ("dict", b"}"),
        ("type", name("torch", "float16")),
    ):
        yield pickled("P-3", f"calls_{variant}", beside(called + b")R"), UnsafeFileError, "calls")
    yield pickled(
        "P-3", "no_tuple", beside(name("collections", "OrderedDict") + b"]R"), FormatError, "tuple"
    )


def _opcodes() -> Iterator[Case]:
    key = text("k")
    for variant, code in (
        ("item_of_text", text("x") + key + b"Ns"), ("items_of_list", b"](" + key + b"Nu"),
        ("item_of_tensor", ENTRIES[FIRST] + key + b"Ns"), ("append_to_dict", b"}Na"),
        ("appends_to_tuple", b")(Ne"), ("append_to_ordered", ordered_dict() + b"Na"),
    ):  # fmt: skip
        yield pickled("P-4", variant, beside(code), FormatError, "for what is a")
    yield pickled("P-4", "half_a_pair", beside(b"}(" + key + b"u"), FormatError, "without a value")
    payload = pickle_of(name("os", "system") + tuple_of(text("true")) + b"R" + b"\xff\xff")
    yield pickled("P-5", "payload_first", payload, UnsafeFileError, "'os.system'")
    yield pickled("P-5", "garbage_after", GOOD_PICKLE + b"x", FormatError, "after the end")
    for variant, index in (("2_31", 2**31), ("2_32", 2**32 - 1), ("10_6", 10**6)):
        code = b"N" + b"r" + struct.pack("<I", index)
        yield pickled("P-6", f"put_{variant}", beside(code), FormatError, "memo entry")
    yield pickled("P-6", "get_unset", beside(b"h\xff"), FormatError, "never set")
    yield pickled("P-6", "put_nothing", b"\x80\x02q\x00.", FormatError, "stack is empty")
    yield pickled("P-6", "text_put", beside(b"Np99999999999999999999\n"), FormatError, "not known")
    many = b"\x80\x02}" + b"".join(b"r" + struct.pack("<I", i) for i in range(110_000)) + b"."
    yield pickled("P-6", "many", many, FormatError, "memo entry 100000")
    for variant, code in (
        ("bytes8", b"\x8e" + struct.pack("<Q", 2**62)), ("text8", b"\x8d" + b"\xff" * 8),
        ("frame", b"\x95" + b"\xff" * 8), ("long4", b"\x8b" + struct.pack("<i", 2**31 - 1)),
        ("long4_negative", b"\x8b" + struct.pack("<i", -1)), ("long1", b"\x8a\xff"),
        ("text4", b"X" + b"\xff" * 4), ("bytes4", b"B" + b"\xff" * 4),
    ):  # fmt: skip
        yield pickled("P-7", variant, beside(code), FormatError, "bytes where|a frame|of .* bytes")
    doubled = b")" + b"q\x00h\x00\x86" * 40
    yield pickled("P-8", "doubled", pickle_of(doubled), FormatError, "holds a tuple")
    yield pickled("P-8", "doubled_beside", beside(doubled), None)
    yield pickled("P-8", "doubled_as_key", beside(b"}" + doubled + b"Ns"), FormatError, "a key is")
    deep = b")" + b"\x85" * 50_000
    yield pickled("P-8", "deep", pickle_of(deep), FormatError, "holds a tuple")
    yield pickled("P-8", "deep_beside", beside(deep), None)
    yield pickled("P-8", "deep_list", pickle_of(b"]" * 20_000 + b"a" * 19_999), FormatError, "list")
    yield pickled("P-8", "own_list", pickle_of(b"]q\x00h\x00a"), FormatError, "holds a list")
    own = b"\x80\x02}q\x00" + text("model") + b"h\x00s."
    yield pickled("P-8", "own_dict", own, FormatError, "without tensors")
    for variant, data, words in (
        ("no_stop", GOOD_PICKLE[:-1], "opcode at"), ("empty", b"", "protocol 0 or 1"),
        ("only_stop", b"\x80\x02.", "stack is empty"),
        ("underflow", b"\x80\x02a.", "stack is empty"),
        ("no_mark", b"\x80\x02Nt.", "mark is missing"), ("left_over", b"\x80\x02}}.", "left over"),
        ("marks_left", b"\x80\x02}(.", "stack is empty"), ("key_list", beside(b"}]Ns"), "a key is"),
        ("key_float", beside(b"}G" + bytes(8) + b"Ns"), "a key is"),
        ("unknown", beside(b"\xff"), "0xff is not known"), ("set", beside(b"\x8f"), "0x8f"),
        ("protocol_twice", beside(b"\x80\x02"), "0x80"),
        ("utf8", beside(b"X\x01\0\0\0\xff"), "UTF-8"),
    ):  # fmt: skip
        error = UnsupportedError if variant == "empty" else FormatError
        yield pickled("P-9", variant, data, error, words)
    for protocol in (0, 1, 6, 255):
        data = bytes([0x80, protocol]) + GOOD_PICKLE[2:]
        yield pickled("P-9", f"protocol_{protocol}", data, FormatError, "is not known")
    yield pickled("P-9", "protocol_0_text", b"(dp0\n.", UnsupportedError, "protocol 0 or 1")


def _numbers() -> Iterator[Case]:
    sizes = PART[FIRST].shape
    n = PART[FIRST].size
    good = storage("FloatStorage", "0", n)
    for variant, value in (
        ("negative", whole(-1)), ("bool", b"\x88"), ("float", b"G" + bytes(8)), ("none", b"N"),
        ("text", text("4")), ("2_48", whole(2**48)), ("2_100", whole(2**100)), ("list", b"]"),
    ):  # fmt: skip
        shape = tuple_of(value, whole(sizes[1]))
        for what, arguments in (
            ("size", (whole(0), shape, tuple_of(whole(1), whole(1)))),
            ("stride", (whole(0), tuple_of(whole(1), whole(1)), shape)),
            ("offset", (value, tuple_of(whole(1)), tuple_of(whole(1)))),
        ):
            call = rebuilt(good, *arguments)
            yield pickled(
                "P-12", f"{what}_{variant}", instead(call), FormatError, "a size is wanted"
            )
        count = tuple_of(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"),
                         value) + b"Q"  # fmt: skip
        yield pickled(
            "P-11", f"count_{variant}", instead(tensor(count, (1,))), FormatError, "wanted"
        )
    for variant, count in (("more", n + 1), ("fewer", n - 1), ("zero", 0), ("huge", 2**47)):
        call = tensor(storage("FloatStorage", "0", count), sizes)
        yield pickled("P-11", f"count_{variant}", instead(call), FormatError, "is to have")


def rebuilt(stored: bytes, offset: bytes, shape: bytes, strides: bytes) -> bytes:
    """A call of torch's function with any arguments."""
    arguments = tuple_of(stored, offset, shape, strides, b"\x89", ordered_dict())
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _persistent_ids() -> Iterator[Case]:
    kind, n = name("torch", "FloatStorage"), PART[FIRST].size

    def stored(*items: bytes) -> bytes:
        return tensor(tuple_of(*items) + b"Q", PART[FIRST].shape)

    good = (text("storage"), kind, text("0"), text("cpu"), whole(n))
    for variant, call, error, words in (
        ("text", tensor(text("0") + b"Q", (1,)), FormatError, "no tuple"),
        ("number", tensor(b"K\x00Q", (1,)), FormatError, "no tuple"),
        ("empty", tensor(b")Q", (1,)), FormatError, "is wanted"),
        ("short", stored(*good[:4]), FormatError, "is wanted"),
        ("long", stored(*good, b"N"), FormatError, "is wanted"),
        ("module", stored(text("module"), *good[1:]), FormatError, "is wanted"),
        ("kind_text", stored(good[0], text("FloatStorage"), *good[2:]), FormatError, "is wanted"),
        (
            "kind_dtype",
            stored(good[0], name("torch", "float32"), *good[2:]),
            FormatError,
            "no type",
        ),
        (
            "kind_unknown",
            stored(good[0], name("torch", "XStorage"), *good[2:]),
            UnsafeFileError,
            "",
        ),
        ("key_number", stored(*good[:2], whole(0), *good[3:]), FormatError, "must be texts"),
        ("key_missing", stored(*good[:2], text("99"), *good[3:]), FormatError, "is missing"),
        ("place_none", stored(*good[:3], b"N", good[4]), FormatError, "must be texts"),
        ("place_cuda", stored(*good[:3], text("cuda:0"), good[4]), None, ""),
    ):
        yield pickled("P-10", variant, instead(call), error, words)
    for variant, key in (("parent", "../../x"), ("nested", "a/b"), ("dots", ".."), ("empty", ""),
                         ("nul", "0\0"), ("absolute", "/etc/passwd"), ("drive", "C:x"),
                         ("long", "0" * 100)):  # fmt: skip
        call = stored(*good[:2], text(key), *good[3:])
        yield pickled("P-10", f"key_{variant}", instead(call), UnsafeFileError, "no plain name")
        yield Case(
            "P-10",
            f"unzipped_key_{variant}",
            lambda folder, c=call: place_pickle(folder, instead(c)),
            UnsafeFileError,
            "no plain name",
        )


def _tensors() -> Iterator[Case]:
    rows, cols = PART[FIRST].shape
    good = storage("FloatStorage", "0", rows * cols)
    for variant, call, error, words in (
        ("one_more_row", tensor(good, (rows + 1, cols)), FormatError, "reaches element"),
        ("offset_1", tensor(good, (rows, cols), offset=1), FormatError, "reaches element"),
        ("offset_2_47", tensor(good, (1, 1), offset=2**47), FormatError, "reaches element"),
        ("stride", tensor(good, (rows, cols), (cols + 1, 1)), FormatError, "reaches element"),
        ("stride_2_47", tensor(good, (2, 2), (2**47, 2**47)), FormatError, "reaches element"),
        ("expand", tensor(good, (2**40, cols), (0, 1)), MemoryPlanError, "do not lie in order"),
        ("expand_huge", tensor(good, (2**47, 2**47), (0, 0)), MemoryPlanError, "not lie in order"),
        ("expand_small", tensor(good, (rows, cols), (0, 1)), None, ""),
        ("turned", tensor(good, (rows, cols), (1, rows)), None, ""),
        ("other_shape", tensor(good, (cols, rows)), ConfigError, "not"),
        ("flat", tensor(good, (rows * cols,)), ConfigError, "no matrix"),
        ("empty", tensor(good, (0, cols)), ConfigError, ""),
    ):
        yield pickled("P-12", variant, instead(call), error, words)
    yield pickled("P-13", "rank", instead(tensor(good, (rows, cols), (1,))), FormatError, "2 sizes")
    yield pickled("P-13", "rank_65", instead(tensor(good, (1,) * 65)), FormatError, "at most 8")
    listed = rebuilt(good, whole(0), b"]", b")")
    yield pickled("P-13", "list", instead(listed), FormatError, "must be a tuple")
    for variant, arguments in (("none", ()), ("few", (good, whole(0))), ("many", (good,) * 9)):
        call = name("torch._utils", "_rebuild_tensor_v2") + tuple_of(*arguments) + b"R"
        yield pickled("P-13", f"arguments_{variant}", instead(call), FormatError, "arguments")
    no_storage = rebuilt(text("0"), whole(0), b")", b")")
    yield pickled("P-13", "no_storage", instead(no_storage), FormatError, "is no storage")
    for function in ("_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor",
                     "_rebuild_wrapper_subclass", "_rebuild_meta_tensor_no_storage"):  # fmt: skip
        call = name("torch._utils", function) + b")R"
        yield pickled("P-14", function, instead(call), UnsupportedError, function)
    subclass = name("torch._tensor", "_rebuild_from_type_v2") + b")R"
    yield pickled("P-14", "subclass", instead(subclass), UnsupportedError, "tensor subclasses")
    for kind in ("ComplexFloatStorage", "QInt8Storage", "QUInt4x2Storage"):
        call = tensor(storage(kind, "0", 1), (1,))
        yield pickled("P-14", kind, instead(call), UnsupportedError, kind)
    for kind in ("LongStorage", "DoubleStorage", "BoolStorage"):
        width = {"LongStorage": 8, "DoubleStorage": 8, "BoolStorage": 1}[kind]
        call = tensor(storage(kind, "0", rows * cols * 4 // width), (rows, cols * 4 // width))
        yield pickled(
            "P-14", f"{kind}_as_weight", instead(call), UnsupportedError, "is not supported"
        )
    untyped = tuple_of(text("storage"), name("torch.storage", "UntypedStorage"), text("0"),
                       text("cpu"), whole(rows * cols * 4)) + b"Q"  # fmt: skip
    yield pickled("P-14", "untyped", instead(tensor(untyped, (1,))), FormatError, "without a type")
    half = tensor(storage("HalfStorage", "0", 2 * rows * cols), (rows, cols))
    yield pickled("P-14", "another_type", instead(half), None)
    odd = storage("BFloat16Storage", "0", rows * cols * 2 - 1)
    yield pickled("P-21", "odd", instead(tensor(odd, (rows, cols))), FormatError, "is to have")
    zipped_odd = dict(STORAGES, **{"0": STORAGES["0"][:-1]})
    yield Case(
        "P-21",
        "odd_bytes",
        lambda folder: place(folder, torch_zip(GOOD_PICKLE, zipped_odd).to_bytes()),
        FormatError,
        "is to have",
    )
