# Activations, and the arrays of a step. Included by core.pyx.

cdef class Buf:
    """Activations [n_rows, n_cols] f32; `array` is the same memory as numpy."""

    cdef float *data
    cdef readonly int64_t n_rows, n_cols
    cdef readonly object array

    def __init__(self, array):
        cdef float[:, ::1] view = array
        self.array = array
        self.n_rows = view.shape[0]
        self.n_cols = view.shape[1]
        self.data = &view[0, 0] if self.n_rows and self.n_cols else NULL

    @staticmethod
    def zeros(int64_t n_rows, int64_t n_cols):
        return Buf(np.zeros((n_rows, n_cols), dtype=np.float32))

    def first(self, int64_t n_rows):
        """The first rows, sharing memory."""
        return Buf(self.array[:n_rows])


cdef class Step:
    """The arrays of a Batch, checked once, as pointers for every op of the step."""

    cdef const int32_t[::1] token_ids, positions, seq_start, logit_rows
    cdef const int32_t[:, :, ::1] page_tables
    cdef readonly int64_t n_tokens, n_seqs, n_logits
    cdef int64_t n_groups, pages_per_seq
    cdef int32_t max_id, max_position
    cdef uintptr_t checked_kv
    cdef int64_t checked_window[MAX_GROUPS]  # the widest that all pages are there for

    def __init__(self, batch):
        self.token_ids = batch.token_ids
        self.positions = batch.positions
        self.seq_start = batch.seq_start
        self.page_tables = batch.page_tables
        self.logit_rows = batch.logit_rows
        self.n_tokens = self.token_ids.shape[0]
        self.n_seqs = self.seq_start.shape[0] - 1
        self.n_groups = self.page_tables.shape[0]
        self.pages_per_seq = self.page_tables.shape[2]
        self.n_logits = self.logit_rows.shape[0]
        self._check()

    cdef int _check(self) except -1:
        cdef int64_t t, b
        if self.n_tokens < 1 or self.n_seqs < 1 or self.positions.shape[0] != self.n_tokens:
            raise ShapeError(f"batch: {self.n_tokens} tokens, {self.positions.shape[0]} positions, "
                             f"{self.n_seqs} sequences")
        if self.page_tables.shape[1] != self.n_seqs or self.pages_per_seq < 1:
            raise ShapeError(f"batch: page tables of {self.page_tables.shape[1]} rows for "
                             f"{self.n_seqs} sequences")
        if self.seq_start[0] != 0 or self.seq_start[self.n_seqs] != self.n_tokens:
            raise ShapeError("batch: seq_start must run from 0 to the number of tokens")
        for b in range(self.n_seqs):
            if not self.seq_start[b] < self.seq_start[b + 1] <= self.n_tokens:
                raise ShapeError(f"batch: sequence {b} has tokens {self.seq_start[b]} to "
                                 f"{self.seq_start[b + 1]} of {self.n_tokens}")
            for t in range(self.seq_start[b] + 1, self.seq_start[b + 1]):
                if self.positions[t] != self.positions[t - 1] + 1:
                    raise ShapeError(f"batch: positions of sequence {b} are not consecutive")
        self.max_id = self.max_position = 0
        for t in range(self.n_tokens):
            if self.token_ids[t] < 0 or self.positions[t] < 0:
                raise ShapeError(f"batch: token {t} has id {self.token_ids[t]}, position "
                                 f"{self.positions[t]}")
            self.max_id = max(self.max_id, self.token_ids[t])
            self.max_position = max(self.max_position, self.positions[t])
        for t in range(self.n_logits):
            if not 0 <= self.logit_rows[t] < self.n_tokens:
                raise ShapeError(f"batch: logit row {self.logit_rows[t]} of {self.n_tokens} tokens")
        return 0

    cdef int check_pages(self, KVStore kv, int32_t group, int64_t window) except -1:
        """Every page that a query sees is one of the store; pages before its window may be -1."""
        cdef int64_t b, j, first, last, page, n_pages = kv.groups[group].n_pages
        if self.checked_kv != <uintptr_t>kv.groups[0]:
            if self.n_groups != kv.n_groups:
                raise ShapeError(f"batch: {self.n_groups} page tables for a cache of "
                                 f"{kv.n_groups} groups")
            self.checked_kv = <uintptr_t>kv.groups[0]
            for j in range(MAX_GROUPS):
                self.checked_window[j] = 0
        if window == 0:
            window = INT64_MAX
        if window <= self.checked_window[group]:
            return 0
        for b in range(self.n_seqs):
            first = max(0, self.positions[self.seq_start[b]] - window + 1) // RL_PAGE_LEN
            last = self.positions[self.seq_start[b + 1] - 1] // RL_PAGE_LEN
            if last >= self.pages_per_seq:
                raise ShapeError(f"batch: sequence {b} has no page for its last position")
            for j in range(first, last + 1):
                page = self.page_tables[group, b, j]
                if not 0 <= page < n_pages:
                    raise ShapeError(f"batch: page {page} of {n_pages}")
        self.checked_window[group] = window
        return 0
