"""What each file family calls routers and experts: by expert, or in stacks that are taken apart.

A stack has the name of its experts without {e}; see `experts.py`.
"""

from __future__ import annotations

GGUF_EXPERTS: dict[str, str] = {
    "blk.{i}.ffn_gate_inp.weight": "layers.{i}.router",
    "blk.{i}.ffn_gate_inp.bias": "layers.{i}.b_router",
    "blk.{i}.ffn_gate_exps.weight": "layers.{i}.experts.w_gate",
    "blk.{i}.ffn_up_exps.weight": "layers.{i}.experts.w_up",
    "blk.{i}.ffn_down_exps.weight": "layers.{i}.experts.w_down",
    "blk.{i}.ffn_gate_up_exps.weight": "layers.{i}.experts.w_gate_up",
    "blk.{i}.ffn_gate_exps.bias": "layers.{i}.experts.b_gate",
    "blk.{i}.ffn_up_exps.bias": "layers.{i}.experts.b_up",
    "blk.{i}.ffn_down_exps.bias": "layers.{i}.experts.b_down",
    "blk.{i}.ffn_gate.{e}.weight": "layers.{i}.experts.{e}.w_gate",
    "blk.{i}.ffn_up.{e}.weight": "layers.{i}.experts.{e}.w_up",
    "blk.{i}.ffn_down.{e}.weight": "layers.{i}.experts.{e}.w_down",
}

HF_EXPERTS: dict[str, str] = {
    "model.layers.{i}.block_sparse_moe.gate.weight": "layers.{i}.router",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight": "layers.{i}.experts.{e}.w_gate",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight": "layers.{i}.experts.{e}.w_down",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight": "layers.{i}.experts.{e}.w_up",
    "model.layers.{i}.mlp.gate.weight": "layers.{i}.router",
    "model.layers.{i}.mlp.router.weight": "layers.{i}.router",
    "model.layers.{i}.mlp.router.bias": "layers.{i}.b_router",
    "model.layers.{i}.mlp.experts.{e}.gate_proj.weight": "layers.{i}.experts.{e}.w_gate",
    "model.layers.{i}.mlp.experts.{e}.up_proj.weight": "layers.{i}.experts.{e}.w_up",
    "model.layers.{i}.mlp.experts.{e}.down_proj.weight": "layers.{i}.experts.{e}.w_down",
    **{
        f"model.layers.{{i}}.mlp.experts.{theirs}_proj{ending}": f"layers.{{i}}.experts.{ours}"
        for which in ("gate_up", "down")
        for theirs, ending, ours in (
            (which, "", f"w_{which}"),
            (which, "_bias", f"b_{which}"),
            (which, "_blocks", f"w_{which}_blocks"),
            (which, "_scales", f"w_{which}_scales"),
        )
    },
}
