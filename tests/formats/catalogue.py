"""The catalogue of bad files: what each row is, and where rows are tested that are no single file.

Cases carry the number of their row: `hostile.py` has those of models, `hostile_tokenizers.py` those
of tokenizers, `chat/hostile_templates.py` those of chat templates. A row without cases names its
tests in `ELSEWHERE`, or the reason why it does not apply in `NOT_HERE`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import hostile
import hostile_tokenizers
from chat.hostile_templates import HOSTILE

SECTIONS = {
    "GGUF": "G", "safetensors": "S", "torch files": "P-", "llama2.c": "L", "tokenizers": "K",
    "params.json and config.json": "C", "GPTQ and AWQ": "Q", "chat templates": "J",
}  # fmt: skip

ROWS = {
    "G1": "nothing, or less than a header",
    "G2": "another magic, or that of a forerunner",
    "G3": "a version that is not read, or swapped bytes",
    "G4": "a count of tensors beyond the file",
    "G5": "a count of keys beyond the file",
    "G6": "neither keys nor tensors",
    "G7": "length of a key: none, beyond the file, 64 KiB",
    "G8": "keys that are no printable text",
    "G9": "types of values that do not exist",
    "G10": "length of a string beyond the file",
    "G11": "length of an array beyond the file, or wrapping",
    "G12": "arrays of arrays, to any depth",
    "G13": "more strings than bytes for them",
    "G14": "truth values that are neither 0 nor 1",
    "G15": "the same key twice",
    "G16": "alignments that are no powers of two",
    "G17": "alignments beyond use",
    "G18": "alignment of another type",
    "G19": "names of tensors that are no names",
    "G20": "the same tensor twice",
    "G21": "no dimensions, or too many",
    "G22": "dimensions of 0, or that are negative",
    "G23": "dimensions whose product wraps",
    "G24": "sizes that wrap with their padding",
    "G25": "sizes whose sum wraps",
    "G26": "rows that are no whole number of blocks",
    "G27": "weight types that do not exist any more, or never did",
    "G28": "tensors that overlap, or lie out of order",
    "G29": "offsets that wrap",
    "G30": "files that end too early",
    "G31": "files that go on behind the last tensor: legal",
    "G32": "no architecture, or one that cannot run",
    "G33": "keys of another architecture",
    "G34": "no heads",
    "G35": "key/value heads that do not divide the heads",
    "G36": "widths that do not divide into heads",
    "G37": "lists per layer of another length or type",
    "G38": "counts of layers that are not there",
    "G39": "rotated widths that do not fit",
    "G40": "bases and scalings of rotations that are no numbers",
    "G41": "epsilons beyond sense",
    "G42": "experts: none used, more than there are, other routers and stacks",
    "G43": "contexts of 0, or beyond memory",
    "G44": "more tokens than rows of the embedding",
    "G45": "scores and types of another length than tokens",
    "G46": "scores, types and tokens of another element type",
    "G47": "byte tokens that spell no byte, twice or not at all",
    "G48": "normalisation tables that are cut or lead outside",
    "G49": "merges of nothing, of unknown tokens, of another type, millions of them",
    "G50": "special ids outside the vocabulary",
    "G51": "chat templates that are no text, or long",
    "G52": "tensors that are missing, unknown or of another shape",
    "G53": "weights that are not finite",
    "G54": "a part of a model without the others",
    "G55": "paths that are no files",
    "G56": "files that change while they are read",
    "G60": "parts of a model that do not belong together",
    "G61": "tensors of each weight type: cut, overlapping, of any bytes",
    "S1": "less than a header",
    "S2": "header lengths beyond the file, or wrapping",
    "S3": "headers that do not begin as an object",
    "S4": "names that are no text",
    "S5": "what is no JSON, nested without end, numbers without end",
    "S6": "the same key twice",
    "S7": "metadata that is no text",
    "S8": "types that do not exist, or that no weight has",
    "S9": "shapes that are no list of sizes",
    "S10": "shapes whose product wraps to nothing",
    "S11": "shapes that need another number of bytes",
    "S12": "ranges that are no ranges",
    "S13": "ranges that overlap",
    "S14": "holes between tensors and behind them",
    "S15": "tensors that are empty, missing or unknown",
    "S16": "types of less than a byte",
    "S17": "file names that lead out of the folder",
    "S18": "indexes that contradict their files",
    "S19": "indexes without end",
    "S20": "several models in one folder",
    "S21": "weights that are not finite",
    "S22": "a file that is written while it is mapped",
    "P-1": "pickles that call what must not be called",
    "P-2": "the same, with names made up at run time",
    "P-3": "other opcodes that call, and states",
    "P-4": "items for what takes none",
    "P-5": "a payload before garbage",
    "P-6": "memos without end",
    "P-7": "lengths beyond the file",
    "P-8": "tuples that double, nest, or hold themselves",
    "P-9": "streams that no pickler writes",
    "P-10": "storages that are none, keys that lead out",
    "P-11": "storages of another size than their bytes",
    "P-12": "tensors that reach out of their storage",
    "P-13": "sizes and strides of another number",
    "P-14": "tensors of kinds that are not weights",
    "P-15": "other containers: bare pickles, archives",
    "P-16": "members that are encrypted, or grow without end",
    "P-17": "members that overlap, twins, headers that disagree",
    "P-18": "names of members that lead out",
    "P-19": "directories that lie, are cut, or begin late",
    "P-20": "no pickle, two, or a huge one",
    "P-21": "another byte order, halves of elements",
    "P-22": "shards that are missing or do not fit",
    "P-23": "what else such files hold: left aside",
    "L1": "less than a header",
    "L2": "sizes of 0, or negative",
    "L3": "a vocabulary of -2^31",
    "L4": "heads that do not divide",
    "L5": "sizes that give another length than the file's",
    "L6": "versions and groups that do not exist",
    "L7": "first numbers that look like a magic",
    "L8": "lengths of pieces beyond the file",
    "L9": "more or fewer pieces than the model has",
    "L10": "scores and pieces that are none",
    "L60": "llama2.rs: other lengths, orders of columns that are none, scales that are not finite",
    "K0": "correct ones, so that the others fail for their own reason",
    "K1": "fields of protobuf that are cut or do not exist",
    "K2": "unknown, repeated and nested fields",
    "K3": "pieces without end",
    "K4": "pieces with NUL, broken characters, or nothing",
    "K5": "normalisation tables that are cut or lead outside",
    "K6": "no pieces, no unknown piece or two, types that do not exist",
    "K7": "scores that are no sane numbers",
    "K8": "ids that are negative, repeated, or far away",
    "K9": "merges and ranks that name nothing, unknown ways of cutting text",
    "K10": "patterns that take more than linear time, or are none",
    "K11": "added tokens: empty, huge, many, with taken ids",
    "K12": "normalisers that make a text grow without end",
    "K13": "parts that nest, do not exist, or are no parts",
    "K14": "post-processors and settings that name no token",
    "K15": "long runs of one thing",
    "K16": "texts that are no Unicode",
    "K17": "texts beyond what libraries count",
    "K18": "ids outside the vocabulary",
    "K19": "names of special tokens in texts",
    "K20": "no tokenizer at all",
    "C1": "files that are no JSON object",
    "C2": "sizes that are no sizes",
    "C3": "a vocabulary of -1: legal",
    "C4": "factors of the feed-forward that are none",
    "C5": "heads that do not divide",
    "C6": "rotations that are not possible or not known",
    "C7": "contexts of 0, or beyond memory",
    "C8": "vocabularies and heads that contradict the tensors",
    "C9": "special ids outside the vocabulary",
    "C10": "code that a file would have us run: left aside",
    "C11": "architectures and settings that are not computed",
    "C12": "quantisations that are not read, or contradict the tensors",
    "C13": "sampling settings that are none",
    "Q1": "groups of inputs that do not exist",
    "Q2": "parts of a matrix that are missing",
    "Q3": "parts of another shape or type, scales that are not finite",
    "Q4": "an unknown convention of zeros",
    "J1": "chains of attributes out of the sandbox",
    "J2": "the same, through format and filters",
    "J3": "other templates and files",
    "J4": "loops without end",
    "J5": "texts, numbers and lists without end",
    "J6": "recursion without end",
    "J7": "sources that nest without end",
    "J8": "sources that are too long, or no templates",
    "J9": "templates that refuse a conversation",
    "J10": "templates that render nothing",
    "J11": "values that are not there",
    "J12": "formats of dates without end",
    "J13": "templates that come with a request",
    "J14": "arguments that would replace ours, or without end",
    "J15": "templates that change the conversation",
}

ELSEWHERE = {
    "G53": ("formats/test_hostile_weights.py::test_weights_that_are_not_finite_give_an_error",),
    "G55": (
        "formats/test_paths.py::test_special_files_are_refused_at_once",
        "formats/test_paths.py::test_special_files_in_a_folder_are_passed_over",
    ),
    "G56": (
        "formats/test_paths.py::test_changed_while_reading_is_said",
        "formats/test_paths.py::test_truncated_between_header_reads_gives_an_error_and_no_signal",
    ),
    "S21": ("formats/test_hostile_weights.py::test_one_value_that_is_not_finite_gives_an_error",),
    "L60": ("formats/test_llama2rs.py::test_llama2rs_damaged_file_is_refused",),
    "K15": (
        "tokenizers/test_linear_time.py::test_a_long_run_of_one_thing_takes_linear_time",
        "tokenizers/test_linear_time.py::test_a_megabyte_of_one_thing_takes_linear_time",
    ),
    "K16": (
        "tokenizers/test_spm.py::test_lone_surrogates_become_the_replacement_character",
        "tokenizers/test_spm.py::test_broken_utf8_becomes_the_replacement_character",
        "tokenizers/test_json.py::test_json_lone_surrogates_and_nul",
    ),
    "K17": ("tokenizers/test_spm.py::test_texts_beyond_the_librarys_count_are_refused",),
    "K18": (
        "tokenizers/test_spm.py::test_ids_outside_are_refused_by_name",
        "tokenizers/test_json.py::test_json_ids_outside_are_refused",
    ),
    "K19": (
        "tokenizers/test_spm.py::test_names_of_control_pieces_are_text_unless_asked_for",
        "tokenizers/test_json.py::test_json_special_names_stay_text_unless_asked_for",
        "chat/test_chat.py::test_chat_names_of_special_tokens_in_messages_are_text",
    ),
    "K20": ("formats/test_paths.py::test_tokenizer_folder_without_any_lists_the_names",),
    "J11": ("chat/test_template.py::test_template_uses_what_templates_in_the_wild_use",),
    "J14": ("chat/test_template.py::test_template_with_wrong_input_says_so",),
    "J15": ("chat/test_template.py::test_template_never_changes_the_callers_messages",),
}

NOT_HERE = {
    "S22": "nothing in this version writes a model file, so no mapping can lie under one",
    "J13": "there is no server whose requests could bring a template",
}


def case_ids() -> Iterator[tuple[str, str]]:
    """Row and id of every case."""
    yield from ((case.row, case.id) for case in hostile.all_cases())
    yield from ((case.row, case.id) for case in hostile_tokenizers.cases())
    yield from ((key.partition("-")[0], key) for key in HOSTILE)


def section(row: str) -> str:
    """The kind of file that a row is about."""
    letters = row.rstrip("0123456789")
    return next(name for name, prefix in SECTIONS.items() if prefix == letters)


def cases_per_section() -> dict[str, int]:
    """How many cases there are for each kind of file."""
    counts = Counter(section(row) for row, _ in case_ids())
    return {name: counts[name] for name in SECTIONS}
