"""Thin Cython over the C kernels: check, convert, release the GIL, call, translate.

No algorithm lives here. Activations are `Buf`, weights are `Weight`, the arrays of a step are
`Step`; all three hold plain pointers, so that an op costs about a microsecond to call.
"""

from libc.math cimport isfinite
from libc.stdlib cimport free, malloc
from libc.stdint cimport INT64_MAX, int16_t, int32_t, int64_t, uint8_t, uint64_t, uintptr_t

from rllama._kernels.rl cimport *

import numpy as np

from rllama.errors import BackendError, ConfigError, ShapeError, UnsupportedError

PAGE_LEN = RL_PAGE_LEN

cdef enum:
    MAX_GROUPS = 16  # of layers that see equally far; models have one, two or three


def isa_levels():
    """Every level of this architecture, ascending: (name, compiled, usable on this CPU)."""
    return [
        (rl_isa_name(i).decode(), bool(rl_isa_compiled(i)), bool(rl_isa_usable(i)))
        for i in range(rl_isa_count())
    ]


def parallel_kind():
    """The threads library of this build: "POSIX threads", "OpenMP", "libdispatch" or "serial"."""
    return rl_parallel_kind().decode()


def formats():
    """The weight formats of the kernels, in order: (name, block length, block bytes)."""
    return [
        (rl_format_name(i).decode(), rl_format_block_len(i), rl_format_block_bytes(i))
        for i in range(rl_format_count())
    ]


include "weights.pxi"
include "batch.pxi"
include "cache.pxi"


cdef class Context:
    """Kernel table, threads and scratch. One thread at a time may run its ops."""

    cdef rl_ctx *c
    cdef bint busy

    def __cinit__(self, *args, isa=None, int n_threads=1, **kwargs):
        cdef bytes name
        cdef const char *chosen = NULL
        if n_threads < 1:
            raise ConfigError(f"the number of threads must be at least 1, not {n_threads}")
        if isa is not None:
            name = isa.encode()
            chosen = name
            self._check_isa(isa)
        self.c = rl_ctx_new(chosen, n_threads)
        if self.c == NULL:
            raise BackendError(
                f"ISA level {isa or 'scalar'!r} computes wrong results on this machine, or there "
                "is no memory for a kernel context"
            )

    def _check_isa(self, isa):
        levels = {name: (compiled, usable) for name, compiled, usable in isa_levels()}
        usable = ", ".join(n for n, (_, ok) in levels.items() if ok)
        if isa not in levels:
            raise ConfigError(f"unknown ISA level {isa!r}; usable here: {usable}")
        if not levels[isa][0]:
            raise ConfigError(f"ISA level {isa!r} is not in this build; usable here: {usable}")
        if not levels[isa][1]:
            raise ConfigError(f"this CPU cannot run ISA level {isa!r}; usable here: {usable}")

    def __dealloc__(self):
        rl_ctx_free(self.c)

    @property
    def isa(self):
        return rl_ctx_isa(self.c).decode()

    @property
    def n_threads(self):
        return rl_ctx_threads(self.c)

    def has_kernels(self, str format_name):
        """Whether a weight format is multiplied as it lies; else its rows become F32 first."""
        for number in range(rl_format_count()):
            if rl_format_name(number).decode() == format_name:
                return bool(rl_ctx_has_kernels(self.c, number))
        raise ConfigError(f"no such weight format: {format_name!r}")

    def set_serial(self):
        """Run every op in the calling thread from now on (the child of a fork must). An op that
        another thread had begun before the fork does not exist here."""
        rl_ctx_set_serial(self.c)
        self.busy = False

    @property
    def is_serial(self):
        return bool(rl_ctx_serial(self.c))

    cdef int enter(self) except -1:
        if self.busy:
            raise BackendError("a kernel context is already in use by another thread")
        self.busy = True
        return 0

    cdef int leave(self, rl_status status) except -1:
        self.busy = False
        if status == RL_NO_MEMORY:
            raise MemoryError("no memory for the scratch of an op")
        if status != RL_OK:
            raise BackendError(f"a kernel failed with status {status}")
        return 0

    def begin(self, batch, RopeTable table=None):
        """Check the arrays of a batch once for all ops of the step. Raises ShapeError."""
        return Step(batch)

    def embed(self, Step step, table, Buf out):
        """out[T, D] = rows of the table. Raises ShapeError for an id beyond it."""
        cdef int64_t row = 0, column = 0
        n_rows, n_cols = table.shape
        if step.max_id >= n_rows:
            raise ShapeError(f"embed: token id {step.max_id} of {n_rows} rows")
        if out.n_rows != step.n_tokens or out.n_cols != n_cols:
            raise ShapeError(f"embed: out {(out.n_rows, out.n_cols)} for {step.n_tokens} tokens of "
                             f"{n_cols}")
        if isinstance(table, Weight):
            self.run_embed(step, table, 0, out.data, out.n_cols)
            return
        for part in table.parts:
            self.run_embed(step, part, row, out.data + column, out.n_cols)
            if table.axis == 0:
                row += part.shape[0]
            else:
                column += part.shape[1]

    cdef int run_embed(self, Step step, Weight table, int64_t first_row, float *out,
                       int64_t out_stride) except -1:
        cdef rl_status status
        if table.c.column_order != NULL:
            raise ShapeError(f"embed: {table.origin} has an order of columns")
        self.enter()
        with nogil:
            status = rl_embed(self.c, &table.c, &step.token_ids[0], step.n_tokens,
                              <int32_t>first_row, out, out_stride)
        self.leave(status)
        return 0

    def rms_norm(self, Buf x, Weight weight, double eps, Buf out):
        """out = x / sqrt(mean(x^2) + eps) * weight; weight is F32 [1, D]. A narrower weight norms
        every head of its width on its own."""
        cdef int64_t dim = weight.c.n_cols
        if x.n_cols % dim or out.n_cols != x.n_cols or out.n_rows != x.n_rows:
            raise ShapeError(f"rms_norm: x {(x.n_rows, x.n_cols)} weight {weight.shape} "
                             f"out {(out.n_rows, out.n_cols)}")
        if weight.c.format != 0 or weight.c.n_rows != 1:
            raise ShapeError("rms_norm: the weight must be one F32 row")
        cdef rl_status status
        self.enter()
        with nogil:
            status = rl_rms_norm(self.c, x.data, <const float *>weight.c.data, eps,
                                 x.n_rows * (x.n_cols // dim), dim, out.data)
        self.leave(status)

    cdef int run_matmul(self, Buf x, tuple weights, tuple outs, bint add) except -1:
        cdef rl_matmul_op op
        cdef Weight weight
        cdef Buf out
        cdef int i, n = <int>len(weights)
        if n < 1 or n > RL_MAX_OUTPUTS or len(outs) != n:
            raise ShapeError(f"matmul: {n} weights, {len(outs)} outputs")
        for i in range(n):
            if isinstance(weights[i], Joined):
                return self.run_pieces(x, weights, outs, add)
            weight = weights[i]
            out = outs[i]
            if weight.c.n_cols != x.n_cols or out.n_cols != weight.c.n_rows \
                    or out.n_rows != x.n_rows:
                raise ShapeError(f"matmul: x {(x.n_rows, x.n_cols)} w {weight.shape} "
                                 f"out {(out.n_rows, out.n_cols)}")
            op.w[i] = &weight.c
            op.out[i] = out.data
            op.out_stride[i] = out.n_cols
        op.x = x.data
        return self.run_op(&op, x, n, add)

    cdef int run_op(self, rl_matmul_op *op, Buf x, int n, bint add) except -1:
        cdef rl_status status
        if x.n_rows == 0:
            return 0
        op.x_stride = x.n_cols
        op.n_tokens = x.n_rows
        op.n_outputs = n
        op.add = add
        self.enter()
        with nogil:
            status = rl_matmul(self.c, op)
        self.leave(status)
        return 0

    cdef int run_pieces(self, Buf x, tuple weights, tuple outs, bint add) except -1:
        """Weights of which some are joined: pieces of rows, as many at once as an op takes, write
        their columns of an output; pieces of columns, one op each, add up in it."""
        cdef rl_matmul_op op
        cdef Weight part
        cdef Buf out
        cdef int64_t column
        cdef int n = 0
        for weight, into in zip(weights, outs):
            out = into
            if weight.shape != (out.n_cols, x.n_cols) or out.n_rows != x.n_rows:
                raise ShapeError(f"matmul: x {(x.n_rows, x.n_cols)} w {weight.shape} "
                                 f"out {(out.n_rows, out.n_cols)}")
            if isinstance(weight, Joined) and weight.axis == 1:
                self.add_columns(x, weight, out, add)
                continue
            column = 0
            for part in weight.parts if isinstance(weight, Joined) else (weight,):
                if n == RL_MAX_OUTPUTS:
                    self.run_op(&op, x, n, add)
                    n = 0
                op.w[n] = &part.c
                op.out[n] = out.data + column
                op.out_stride[n] = out.n_cols
                column += part.c.n_rows
                op.x = x.data
                n += 1
        return self.run_op(&op, x, n, add) if n else 0

    cdef int add_columns(self, Buf x, Joined weight, Buf out, bint add) except -1:
        cdef rl_matmul_op op
        cdef Weight part
        cdef int64_t column = 0
        for part in weight.parts:
            op.w[0] = &part.c
            op.x = x.data + column
            op.out[0] = out.data
            op.out_stride[0] = out.n_cols
            self.run_op(&op, x, 1, add)
            column += part.c.n_cols
            add = True
        return 0

    def matmul(self, Buf x, tuple weights, tuple out):
        """out[i][T, N_i] = x[T, K] @ weights[i][N_i, K].T for weights that share x."""
        self.run_matmul(x, weights, out, False)

    def matmul_add(self, Buf x, weight, Buf into):
        """into[T, N] += x[T, K] @ weight[N, K].T"""
        self.run_matmul(x, (weight,), (into,), True)

    def quantize(self, Weight source, int kind, int64_t group, int scale_type,
                 uint8_t[:, ::1] out):
        """Float rows to the blocks `out` [N, row bytes] of a recipe; False where a value is not
        finite or a scale beyond half precision."""
        cdef rl_recipe recipe
        cdef rl_status status
        cdef int64_t n_cols = source.c.n_cols
        if not 0 <= kind < RL_N_RECIPES or max(source.c.format, scale_type) > 2 or scale_type < 0:
            raise ShapeError(f"quantize: {source.format_name} by recipe {kind}, scales of type "
                             f"{scale_type}")
        # In the order of rl_recipe_kind: the length and the bytes of a block.
        block_len, block_bytes = ((32, 34), (32, 18), (256, 144), (32, 36), (32, 18), (32, 20))[kind]
        if n_cols % block_len or out.shape[0] != source.c.n_rows \
                or out.shape[1] != n_cols // block_len * block_bytes:
            raise ShapeError(f"quantize: {(out.shape[0], out.shape[1])} bytes for {source.shape}")
        if kind >= RL_QUANTIZE_SYMMETRIC_8 and (group < 32 or group % 32):
            raise ShapeError(f"quantize: groups of {group}")
        recipe.kind = kind
        recipe.scale_type = scale_type
        recipe.group = group
        self.enter()
        with nogil:
            status = rl_quantize(self.c, &source.c, &recipe, &out[0, 0], out.shape[1])
        self.leave(RL_OK if status == RL_BAD_ARGUMENT else status)
        return status == RL_OK

    def unpack(self, const uint8_t[::1] words, tuple steps, int bits, bint across_rows,
               int64_t first_row, const int32_t[::1] inputs, const int32_t[::1] group_of_block,
               const uint8_t[:, :, ::1] heads, const int16_t[:, ::1] offsets, uint8_t[:, ::1] out):
        """Packed whole numbers to the blocks `out` [N, row bytes]; heads [groups, N, 4], offsets
        [groups, N]; inputs None: in their own order. See rl_unpack_op."""
        cdef rl_unpack_op op
        cdef rl_status status
        cdef int64_t j, last_word
        op.step_k, op.step_n = steps
        op.n_rows = out.shape[0]
        op.n_cols = group_of_block.shape[0] * 32
        if bits not in (2, 3, 4, 8) or (across_rows and bits != 4):
            raise ShapeError(f"unpack: {bits} bits")
        if op.n_rows < 1 or op.n_cols < 1 or first_row < 0 or op.step_k < 1 or op.step_n < 1:
            raise ShapeError(f"unpack: {op.n_rows} rows from {first_row}, {op.n_cols} columns")
        if out.shape[1] != op.n_cols // 32 * 20 and out.shape[1] != op.n_cols // 32 * 36:
            raise ShapeError(f"unpack: rows of {out.shape[1]} bytes for {op.n_cols} columns")
        if heads.shape[1] != op.n_rows or heads.shape[2] != 4 or offsets.shape[1] != op.n_rows \
                or offsets.shape[0] != heads.shape[0]:
            raise ShapeError("unpack: heads and offsets are not those of these rows")
        if inputs is not None and inputs.shape[0] != op.n_cols:
            raise ShapeError(f"unpack: {inputs.shape[0]} inputs for {op.n_cols} columns")
        for j in range(group_of_block.shape[0]):
            if not 0 <= group_of_block[j] < heads.shape[0]:
                raise ShapeError(f"unpack: group {group_of_block[j]} of {heads.shape[0]}")
        for j in range(op.n_cols if inputs is not None else 0):
            if not 0 <= inputs[j] < op.n_cols:
                raise ShapeError(f"unpack: input {inputs[j]} of {op.n_cols}")
        last_word = (op.n_cols - 1) * op.step_k if across_rows \
            else (op.n_cols * bits - 1) // 32 * op.step_k
        last_word += (first_row + op.n_rows - 1) // (8 if across_rows else 1) * op.step_n
        if 4 * (last_word + 1) > words.shape[0]:
            raise ShapeError(f"unpack: {words.shape[0]} bytes of words, {4 * last_word + 4} wanted")
        op.words = &words[0]
        op.bits = bits
        op.across_rows = across_rows
        op.first_row = first_row
        op.inputs = NULL
        if inputs is not None:
            op.inputs = &inputs[0]
        op.group_of_block = &group_of_block[0]
        op.heads = &heads[0, 0, 0]
        op.offsets = &offsets[0, 0]
        op.nibbles = out.shape[1] == op.n_cols // 32 * 20
        op.out = &out[0, 0]
        self.enter()
        with nogil:
            status = rl_unpack(self.c, &op)
        self.leave(status)

    def rope(self, Buf q, Buf k, Step step, RopeTable table, str style):
        """Rotate queries and keys in place by their positions; the head width is the table's."""
        cdef int64_t head_dim = table.head_dim
        cdef rl_rope_style kind = RL_ROPE_HALF if style == "half" else RL_ROPE_INTERLEAVED
        cdef rl_status status
        if style not in ("half", "interleaved"):
            raise ShapeError(f"rope: no such style: {style!r}")
        if q.n_cols % head_dim or k.n_cols % head_dim or q.n_rows != step.n_tokens \
                or k.n_rows != step.n_tokens:
            raise ShapeError(f"rope: q {(q.n_rows, q.n_cols)} k {(k.n_rows, k.n_cols)} for "
                             f"{step.n_tokens} tokens and heads of {head_dim}")
        if step.max_position >= table.c.max_seq_len:
            raise ShapeError(f"rope: position {step.max_position} of {table.c.max_seq_len}")
        self.enter()
        with nogil:
            rl_rope_table_fill(table.c, step.max_position)
            status = rl_rope(self.c, q.data, q.n_rows, q.n_cols // head_dim, head_dim,
                             &step.positions[0], table.c, kind)
            if status == RL_OK:
                status = rl_rope(self.c, k.data, k.n_rows, k.n_cols // head_dim, head_dim,
                                 &step.positions[0], table.c, kind)
        self.leave(status)

    def attend_spec(self, int64_t layer, *, double scale, double softcap=0.0, int64_t window=0,
                    Weight sinks=None):
        """How a layer attends, for `attend`. Raises ShapeError."""
        return AttendSpec(layer, scale, softcap, window, sinks)

    def attend(self, Buf q, Buf k, Buf v, KVStore kv, AttendSpec spec, Step step, Buf out):
        """Store k and v, then attend each query to the positions up to its own that it sees."""
        cdef rl_attend_op op
        cdef rl_status status
        if kv.n_groups == 0:
            raise BackendError("attend: the cache is closed")
        cdef int64_t kv_dim = kv.n_kv_heads * kv.head_dim
        if spec.layer >= kv.n_layers:
            raise ShapeError(f"attend: layer {spec.layer} of {kv.n_layers}")
        cdef int32_t group = kv.group_of[spec.layer]
        if k.n_cols != kv_dim or v.n_cols != kv_dim or q.n_cols % kv_dim or out.n_cols != q.n_cols:
            raise ShapeError(f"attend: q {(q.n_rows, q.n_cols)} k {(k.n_rows, k.n_cols)} "
                             f"v {(v.n_rows, v.n_cols)} cache width {kv_dim}")
        if not (q.n_rows == k.n_rows == v.n_rows == out.n_rows == step.n_tokens):
            raise ShapeError(f"attend: rows {q.n_rows} {k.n_rows} {v.n_rows} {out.n_rows} for "
                             f"{step.n_tokens} tokens")
        op.n_heads = q.n_cols // kv.head_dim
        op.sinks = NULL
        if spec.sinks is not None:
            if spec.sinks.c.n_cols != op.n_heads:
                raise ShapeError(f"attend: {spec.sinks.c.n_cols} sinks for {op.n_heads} heads")
            op.sinks = <const float *>spec.sinks.c.data
        step.check_pages(kv, group, spec.window)
        op.q = q.data
        op.k = k.data
        op.v = v.data
        op.out = out.data
        op.positions = &step.positions[0]
        op.seq_start = &step.seq_start[0]
        op.page_table = &step.page_tables[group, 0, 0]
        op.n_tokens = step.n_tokens
        op.n_seqs = step.n_seqs
        op.pages_per_seq = step.pages_per_seq
        op.layer = kv.index_of[spec.layer]
        op.scale = spec.scale
        op.softcap = spec.softcap
        op.window = spec.window
        self.enter()
        with nogil:
            status = rl_attend(self.c, kv.groups[group], &op)
        self.leave(status)

    def glu(self, Buf gate, Buf up, str activation="silu"):
        """gate = activation(gate) * up"""
        cdef rl_activation kind = activation_kind(activation)
        if gate.n_rows != up.n_rows or gate.n_cols != up.n_cols:
            raise ShapeError(f"glu: gate {(gate.n_rows, gate.n_cols)} up {(up.n_rows, up.n_cols)}")
        cdef rl_status status
        self.enter()
        with nogil:
            status = rl_glu(self.c, gate.data, up.data, gate.n_rows * gate.n_cols, kind)
        self.leave(status)

    def moe(self, Buf x, Experts experts, Buf into):
        """into += the outputs of the experts that the router chooses for each row of x, weighted"""
        cdef rl_moe_op op
        cdef rl_status status
        cdef int64_t dim = experts.c.dim
        if x.n_cols != dim or into.n_cols != dim or into.n_rows != x.n_rows:
            raise ShapeError(f"moe: x {(x.n_rows, x.n_cols)} into {(into.n_rows, into.n_cols)} "
                             f"for experts of width {dim}")
        if x.n_rows == 0:
            return
        if x.n_rows >= 2**31 // experts.c.n_used:
            raise ShapeError(f"moe: {x.n_rows} tokens at once")
        op.x = x.data
        op.into = into.data
        op.n_tokens = x.n_rows
        op.experts = &experts.c
        self.enter()
        with nogil:
            status = rl_moe(self.c, &op)
        self.leave(status)

    def scale(self, Buf x, double factor):
        """x *= factor"""
        cdef rl_status status
        self.enter()
        with nogil:
            status = rl_scale_values(self.c, x.data, factor, x.n_rows * x.n_cols)
        self.leave(status)

    def grow(self, Buf x, Step step, double growth, int64_t length):
        """x[t] *= 1 + growth * ln(1 + position // length)"""
        cdef rl_status status
        if x.n_rows != step.n_tokens or length < 1:
            raise ShapeError(f"grow: x {(x.n_rows, x.n_cols)} for {step.n_tokens} tokens, in "
                             f"lengths of {length}")
        self.enter()
        with nogil:
            status = rl_grow_rows(self.c, x.data, &step.positions[0], growth, length, x.n_rows,
                                  x.n_cols)
        self.leave(status)

    def softcap(self, Buf x, double scale, double cap):
        """x = cap * tanh(x * scale / cap)"""
        cdef rl_status status
        if not cap > 0:
            raise ShapeError(f"softcap: a cap of {cap}")
        self.enter()
        with nogil:
            status = rl_softcap_values(self.c, x.data, scale, cap, x.n_rows * x.n_cols)
        self.leave(status)

    def add(self, Buf x, Buf into, double factor=1.0):
        """into += factor * x"""
        if x.n_rows != into.n_rows or x.n_cols != into.n_cols:
            raise ShapeError(f"add: x {(x.n_rows, x.n_cols)} into {(into.n_rows, into.n_cols)}")
        cdef rl_status status
        self.enter()
        with nogil:
            status = rl_add_rows(self.c, x.data, x.n_rows, factor, x.n_rows, x.n_cols, into.data)
        self.leave(status)

    def add_bias(self, Buf x, Weight bias):
        """x[T, N] += bias[N]; the bias is F32 [1, N]."""
        if bias.c.n_cols != x.n_cols or bias.c.format != 0 or bias.c.n_rows != 1:
            raise ShapeError(f"add_bias: x {(x.n_rows, x.n_cols)} bias {bias.shape} of "
                             f"{bias.format_name}")
        cdef rl_status status
        self.enter()
        with nogil:
            status = rl_add_rows(self.c, <const float *>bias.c.data, 1, 1.0, x.n_rows, x.n_cols, x.data)
        self.leave(status)

    def gather(self, Buf x, Step step, Buf out):
        """out[R, D] = the rows of x whose logits are wanted."""
        cdef int64_t r, i
        cdef const float *source
        if out.n_rows != step.n_logits or out.n_cols != x.n_cols or x.n_rows != step.n_tokens:
            raise ShapeError(f"gather: x {(x.n_rows, x.n_cols)} out {(out.n_rows, out.n_cols)}")
        with nogil:
            for r in range(step.n_logits):
                source = x.data + step.logit_rows[r] * x.n_cols
                for i in range(x.n_cols):
                    out.data[r * x.n_cols + i] = source[i]

    def read_all(self, const uint8_t[::1] data):
        """Read every byte with all threads; for measuring bandwidth."""
        cdef uint64_t total
        cdef int64_t n = data.shape[0]
        if n == 0:
            return 0
        self.enter()
        with nogil:
            total = rl_read_all(self.c, &data[0], n)
        self.leave(RL_OK)
        return total
