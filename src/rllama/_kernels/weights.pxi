# Weights: whole, in pieces, and the experts of a layer. Included by core.pyx.

cdef dict _ACTIVATIONS = {
    "silu": RL_SILU, "gelu": RL_GELU, "gelu_tanh": RL_GELU_TANH,
    "swiglu_clamped": RL_SWIGLU_CLAMPED,
}


cdef rl_activation activation_kind(str name) except *:
    kind = _ACTIVATIONS.get(name)
    if kind is None:
        raise ShapeError(f"no such activation: {name!r}")
    return kind


cdef class Weight:
    """A weight [n_rows, n_cols] as it lies in memory; keeps its bytes alive.

    column_order [n_cols] is a permutation: column j meets x[column_order[j]]. Weights whose orders
    are one array share their quantised activations.
    """

    cdef rl_weight c
    cdef const uint8_t[::1] owner
    cdef const int32_t[::1] order
    cdef readonly str origin

    def __init__(self, const uint8_t[::1] data, int format, int64_t n_rows, int64_t n_cols,
                 str origin="", const int32_t[::1] column_order=None):
        if not 0 <= format < rl_format_count():
            raise ShapeError(f"{origin}: no such format number: {format}")
        cdef int64_t block_len = rl_format_block_len(format)
        if n_rows < 1 or n_cols < 1 or n_cols % block_len:
            raise ShapeError(f"{origin}: weight of {n_rows} x {n_cols} does not fill blocks of "
                             f"{block_len}")
        cdef int64_t row_bytes = n_cols // block_len * rl_format_block_bytes(format)
        if data.shape[0] != n_rows * row_bytes:
            raise ShapeError(f"{origin}: {data.shape[0]} bytes where {n_rows} x {n_cols} of "
                             f"{rl_format_name(format).decode()} needs {n_rows * row_bytes}")
        self.owner = data
        self.origin = origin
        self.c.data = &data[0]
        self.c.n_rows = n_rows
        self.c.n_cols = n_cols
        self.c.row_bytes = row_bytes
        self.c.format = format
        if column_order is not None:
            self._check_order(column_order)
            self.order = column_order
            self.c.column_order = &column_order[0]

    cdef int _check_order(self, const int32_t[::1] order) except -1:
        cdef int64_t j, n = self.c.n_cols
        cdef uint8_t[::1] seen = np.zeros(n, dtype=np.uint8)
        if order.shape[0] != n:
            raise ShapeError(f"{self.origin}: column order of {order.shape[0]} for {n} columns")
        for j in range(n):
            if not 0 <= order[j] < n or seen[order[j]]:
                raise ShapeError(f"{self.origin}: column order is no permutation: column {j} has "
                                 f"input {order[j]}")
            seen[order[j]] = 1
        return 0

    @property
    def shape(self):
        return (self.c.n_rows, self.c.n_cols)

    @property
    def n_bytes(self):
        return self.c.n_rows * self.c.row_bytes

    @property
    def format_name(self):
        return rl_format_name(self.c.format).decode()


cdef class Joined:
    """A weight [n_rows, n_cols] whose rows (axis 0) or columns (axis 1) lie in several places.

    Every op that takes a Weight takes one of these. Pieces of rows are computed as the whole would
    be, to the bit; the products of pieces of columns are added in the order of the pieces.
    """

    cdef readonly tuple parts, shape
    cdef readonly int axis
    cdef readonly str origin

    def __init__(self, tuple parts, int axis, str origin=""):
        cdef Weight part
        cdef Weight first = parts[0] if parts else None
        cdef int64_t n_rows = 0, n_cols = 0
        if axis not in (0, 1) or first is None:
            raise ShapeError(f"{origin}: {len(parts)} pieces along axis {axis}")
        for part in parts:
            if part.c.format != first.c.format:
                raise ShapeError(f"{origin}: pieces of {first.format_name} and {part.format_name}")
            if (part.c.n_cols if axis == 0 else part.c.n_rows) != \
                    (first.c.n_cols if axis == 0 else first.c.n_rows):
                raise ShapeError(f"{origin}: pieces {first.shape} and {part.shape} along axis "
                                 f"{axis}")
            n_rows += part.c.n_rows
            n_cols += part.c.n_cols
        self.parts = parts
        self.axis = axis
        self.origin = origin
        self.shape = (n_rows, first.c.n_cols) if axis == 0 else (first.c.n_rows, n_cols)

    @property
    def n_bytes(self):
        return sum(part.n_bytes for part in self.parts)

    @property
    def format_name(self):
        return self.parts[0].format_name


cdef class Experts:
    """The feed-forward experts of one layer with their router, checked once.

    Every expert has a gate and an up [F, D] and a down [D, F]; the router is [E, D]. Biases are F32
    rows; gate_bias, up_bias and down_bias have one for each expert or none at all.
    """

    cdef rl_experts c
    cdef object owner

    def __cinit__(self, Weight router, tuple gate, tuple up, tuple down, *, int64_t n_used,
                  bint normalise, str activation="silu", Weight router_bias=None,
                  tuple gate_bias=(), tuple up_bias=(), tuple down_bias=()):
        cdef Weight first
        cdef int64_t n = len(gate)
        if not 1 <= n_used <= n <= RL_MAX_EXPERTS:
            raise ShapeError(f"experts: {n_used} of {n} used; {RL_MAX_EXPERTS} is the most")
        self.owner = (router, router_bias, gate, up, down, gate_bias, up_bias, down_bias)
        first = gate[0]
        self.c.n_experts = n
        self.c.n_used = n_used
        self.c.ffn_dim, self.c.dim = first.shape
        self.c.normalise = normalise
        self.c.activation = activation_kind(activation)
        self.c.gate = self.weights("gate", gate, self.c.ffn_dim, self.c.dim)
        self.c.up = self.weights("up", up, self.c.ffn_dim, self.c.dim)
        self.c.down = self.weights("down", down, self.c.dim, self.c.ffn_dim)
        self.c.gate_bias = self.rows("gate", gate_bias, self.c.ffn_dim)
        self.c.up_bias = self.rows("up", up_bias, self.c.ffn_dim)
        self.c.down_bias = self.rows("down", down_bias, self.c.dim)
        if router.shape != (n, self.c.dim):
            raise ShapeError(f"experts: router {router.shape} for {n} of width {self.c.dim}")
        self.c.router = &router.c
        if router_bias is not None:
            self.c.router_bias = bias_row("router", router_bias, n)

    cdef const rl_weight *weights(self, str what, tuple given, int64_t n_rows,
                                  int64_t n_cols) except NULL:
        cdef Weight weight
        cdef int64_t e
        if len(given) != self.c.n_experts:
            raise ShapeError(f"experts: {len(given)} {what} weights for {self.c.n_experts}")
        cdef rl_weight *found = <rl_weight *>malloc(len(given) * sizeof(rl_weight))
        if found == NULL:
            raise MemoryError("a list of experts")
        for e in range(self.c.n_experts):
            try:
                weight = given[e]
                if weight.shape != (n_rows, n_cols):
                    raise ShapeError(f"experts: {what} of expert {e} is {weight.shape}, not "
                                     f"{(n_rows, n_cols)}")
            except BaseException:
                free(found)
                raise
            found[e] = weight.c
        return found

    cdef const float **rows(self, str what, tuple given, int64_t n_cols) except? NULL:
        cdef int64_t e
        if not given:
            return NULL
        if len(given) != self.c.n_experts:
            raise ShapeError(f"experts: {len(given)} {what} biases for {self.c.n_experts}")
        cdef const float **found = <const float **>malloc(len(given) * sizeof(float *))
        if found == NULL:
            raise MemoryError("a list of experts")
        for e in range(self.c.n_experts):
            try:
                found[e] = bias_row(what, given[e], n_cols)
            except BaseException:
                free(found)
                raise
        return found

    def __dealloc__(self):
        free(<void *>self.c.gate)
        free(<void *>self.c.up)
        free(<void *>self.c.down)
        free(self.c.gate_bias)
        free(self.c.up_bias)
        free(self.c.down_bias)


cdef const float *bias_row(str what, Weight bias, int64_t n_cols) except NULL:
    if bias.shape != (1, n_cols) or bias.c.format != 0:
        raise ShapeError(f"experts: {what} bias {bias.shape} of {bias.format_name}, not one F32 "
                         f"row of {n_cols}")
    return <const float *>bias.c.data
