# How a layer attends: its numbers, its rotations, the pages. Included by core.pyx.

cdef class AttendSpec:
    """How one layer attends: made once, checked once."""

    cdef readonly int64_t layer, window
    cdef readonly double scale, softcap
    cdef Weight sinks

    def __init__(self, int64_t layer, double scale, double softcap, int64_t window, Weight sinks):
        if layer < 0 or not 0 <= window < 2**31:
            raise ShapeError(f"attention: layer {layer}, window {window}")
        if not isfinite(scale) or not isfinite(softcap) or softcap < 0:
            raise ShapeError(f"attention: scale {scale}, softcap {softcap}")
        if sinks is not None and (sinks.c.format != 0 or sinks.c.n_rows != 1):
            raise ShapeError(f"attention: sinks {sinks.shape} must be one F32 row")
        self.layer = layer
        self.window = window
        self.scale = scale
        self.softcap = softcap
        self.sinks = sinks


cdef class RopeTable:
    """Cosines and sines of every position, filled as far as steps have reached.

    Of heads wider than twice the frequencies only the beginning turns."""

    cdef rl_rope_table *c
    cdef int64_t head_dim

    def __cinit__(self, const double[::1] inv_freq, int64_t max_seq_len, double factor=1.0,
                  int64_t head_dim=0):
        if inv_freq.shape[0] < 1 or max_seq_len < 1:
            raise ShapeError("rope table: needs at least one frequency and one position")
        self.head_dim = head_dim or 2 * inv_freq.shape[0]
        if self.head_dim < 2 * inv_freq.shape[0]:
            raise ShapeError(f"rope table: {inv_freq.shape[0]} pairs in a head of {head_dim}")
        self.c = rl_rope_table_new(&inv_freq[0], inv_freq.shape[0], max_seq_len, factor)
        if self.c == NULL:
            raise MemoryError(f"rope table of {max_seq_len} positions")

    def __dealloc__(self):
        rl_rope_table_free(self.c)


cdef class KVStore:
    """Keys and values of every layer in pages; memory is taken as pages are first written.

    `groups` are pairs of layers and a number of pages; every layer is in one of them.
    """

    cdef rl_kv *groups[MAX_GROUPS]
    cdef readonly int64_t n_groups, n_layers, n_bytes
    cdef int64_t n_kv_heads, head_dim
    cdef int32_t[::1] group_of, index_of  # of a layer: its group, and which of its layers it is

    def __cinit__(self, list groups, int64_t n_kv_heads, int64_t head_dim, str dtype):
        kinds = {"f32": RL_KV_F32, "f16": RL_KV_F16, "q8_0": RL_KV_Q8_0}
        if dtype not in kinds:
            raise ConfigError(f"cache type {dtype!r}: this backend has {', '.join(kinds)}")
        if len(groups) > MAX_GROUPS:
            raise UnsupportedError(f"cache: {len(groups)} groups of layers that see equally far; "
                                   f"this backend has up to {MAX_GROUPS}")
        if min(len(groups), n_kv_heads, head_dim, *(min(len(g), n) for g, n in groups)) < 1:
            raise ShapeError("cache: every size must be at least 1")
        self.n_layers = sum(len(layers) for layers, _ in groups)
        if sorted(i for layers, _ in groups for i in layers) != list(range(self.n_layers)):
            raise ShapeError("cache: every layer must be in one group")
        self.n_kv_heads = n_kv_heads
        self.head_dim = head_dim
        self.group_of = np.empty(self.n_layers, dtype=np.int32)
        self.index_of = np.empty(self.n_layers, dtype=np.int32)
        for layers, n_pages in groups:
            self.add_group(layers, n_pages, kinds[dtype])

    cdef int add_group(self, layers, int64_t n_pages, int32_t kind) except -1:
        cdef rl_kv *c = rl_kv_new(len(layers), n_pages, self.n_kv_heads, self.head_dim, kind)
        if c == NULL:
            raise MemoryError(f"a cache of {n_pages} pages")
        for index, layer in enumerate(layers):
            self.group_of[layer] = self.n_groups
            self.index_of[layer] = index
        self.groups[self.n_groups] = c
        self.n_groups += 1
        self.n_bytes += n_pages * rl_kv_page_bytes(c)
        return 0

    def close(self):
        cdef int64_t i
        for i in range(self.n_groups):
            rl_kv_free(self.groups[i])
            self.groups[i] = NULL
        self.n_groups = 0

    def __dealloc__(self):
        self.close()
