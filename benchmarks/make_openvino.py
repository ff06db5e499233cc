"""An OpenVINO model with random weights: `make_openvino.py SHAPE int4|int8 [-o FOLDER]`.

Run it with a Python that has optimum-intel, nncf, torch and transformers. The weights are those of
a new transformers model, made into OpenVINO's representation and compressed by its own tool:
`int4` symmetric in groups of 64 (embedding and head in 8 bits, as the tool has it), `int8` with a
scale and a zero point per row.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import bench_dir
from shapes import SHAPES, Shape

_GROUP = 64  # values of a row that share a scale in `int4`
FORMATS = {
    "int4": ["--weight-format", "int4", "--sym", "--group-size", str(_GROUP), "--ratio", "1.0"],
    "int8": ["--weight-format", "int8"],
}


def fits(shape: Shape, weight_format: str) -> bool:
    """Whether the rows of the shape can be compressed so."""
    widths = {columns for _, columns in shape.layer_matrices().values()}
    return weight_format != "int4" or all(width % _GROUP == 0 for width in widths)


def folder_for(shape_name: str, weight_format: str) -> Path:
    return bench_dir() / f"{shape_name}-openvino-{weight_format}"


def write_random(shape: Shape, folder: Path) -> None:
    """A Hugging Face folder with a new model of this shape, in half precision."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=shape.dim,
        intermediate_size=shape.ffn_dim,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_seq_len,
        rope_theta=shape.rope_theta,
        rms_norm_eps=1e-5,
        tie_word_embeddings=shape.tied,
    )
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(folder)


def make(shape: Shape, weight_format: str, folder: Path) -> None:
    """Export below a temporary name: a half-written model must never be measured."""
    tool = Path(sys.executable).with_name("optimum-cli")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="rllama-openvino-") as source:
        write_random(shape, Path(source))
        command = [
            str(tool), "export", "openvino", "--model", source, "--task",
            "text-generation-with-past", "--disable-convert-tokenizer", *FORMATS[weight_format],
            str(partial),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    partial.rename(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("-o", "--output", type=Path, help="default: in the benchmark folder")
    args = parser.parse_args()
    folder = args.output or folder_for(args.shape, args.format)
    try:
        make(SHAPES[args.shape], args.format, folder)
    except RuntimeError as error:
        print(f"make_openvino: {error}", file=sys.stderr)
        return 1
    print(folder, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
