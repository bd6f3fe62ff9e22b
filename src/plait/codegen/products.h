// Products of a tile of edges with a weight, and of two tiles with each other. Included where a program has products.
//
// Arrays of a tile have a row per edge, `ld` numbers apart, whole vectors long; rows beyond the last edge and columns beyond
// the last element hold anything. A block of rows by vectors is summed in registers, every entry in order, one fma at a time.

// Factors below the normal range count as 0 in products, and so do sums: on x86 such a number takes a hundred times as long
// (radial functions of a distance give many), and all it could change is below the smallest normal number times the width.
struct Normal {
#if defined(__AVX2__)
  const unsigned before = _mm_getcsr();
  Normal() { _mm_setcsr(before | 0x8040); }
  ~Normal() { _mm_setcsr(before); }
#endif
};

// rows of a block by its vectors: accumulators, one row of the weight and one factor fill the registers
constexpr int block_rows(int vectors) {
#if defined(__AVX512F__) || defined(__aarch64__)
  return vectors == 1 ? 16 : vectors == 2 ? 12 : vectors == 3 ? 8 : 6;
#else
  return vectors == 1 ? 8 : vectors == 2 ? 6 : vectors == 3 ? 4 : 3;
#endif
}
// a panel has at most 4 vectors, and all of them about as many
constexpr int num_panels(int vectors) { return (vectors + 3) / 4; }
constexpr int panel_start(int vectors, int panel) { return vectors * panel / num_panels(vectors); }

// [F, G] -> panels [F, vectors of the panel], zeros behind column G; the entry of row f and column g lies at f * rows + g * columns
template <class V, int F, int G, class T> static void pack(T* to, const T* from, i64 rows, i64 columns) {
  constexpr int L = traits<V>::lanes, vectors = (G + L - 1) / L;
  for (int panel = 0; panel < num_panels(vectors); ++panel)
    for (i64 f = 0; f < F; ++f)
      for (int g = panel_start(vectors, panel) * L; g < panel_start(vectors, panel + 1) * L; ++g)
        *to++ = g < G ? from[f * rows + g * columns] : (T)0;
}

// c[R, N vectors] = the sum over `count` steps of a column of `a` times a row of `b`, on top of what is in c if it ADDS.
// The factor of row r in step k lies at a[r * row + k * step].
template <class V, int R, int N, bool ADDS, class T>
INLINE void block(const T* a, i64 row, i64 step, const T* b, i64 ldb, T* c, i64 ldc, i64 count) {
  constexpr int L = traits<V>::lanes;
  V sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[r][v] = ADDS ? ld<V>(c + r * ldc + v * L) : V{};
#pragma GCC unroll 2
  for (i64 k = 0; k < count; ++k) {
    V x[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) x[v] = ld<V>(b + k * ldb + v * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V factor = bc<V>(a[r * row + k * step]);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[r][v] = fma(factor, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) st(c + r * ldc + v * L, sum[r][v]);
}
template <class V, int F, int N, class T> static void multiply_panel(const T* a, i64 lda, const T* w, T* c, i64 ldc, i32 n) {
  constexpr int R = block_rows(N);
  for (i32 k = 0; k < n; k += R) block<V, R, N, false>(a + k * lda, lda, 1, w, N * traits<V>::lanes, c + k * ldc, ldc, F);
}
// c[n, G] = a[n, F] w[F, G], w packed; writes whole blocks of rows
template <class V, int F, int G, class T> static void multiply(const T* a, i64 lda, const T* w, T* c, i64 ldc, i32 n) {
  constexpr int L = traits<V>::lanes, vectors = (G + L - 1) / L;
  const Normal normal;
  for (int panel = 0; panel < num_panels(vectors); ++panel) {
    const int start = panel_start(vectors, panel), size = panel_start(vectors, panel + 1) - start;
    const T* const part = w + (i64)start * L * F;
    T* const to = c + start * L;
    if constexpr (vectors >= 4) if (size == 4) multiply_panel<V, F, 4>(a, lda, part, to, ldc, n);
    if constexpr (vectors >= 3) if (size == 3) multiply_panel<V, F, 3>(a, lda, part, to, ldc, n);
    if constexpr (vectors >= 2) if (size == 2) multiply_panel<V, F, 2>(a, lda, part, to, ldc, n);
    if constexpr (vectors == 1) multiply_panel<V, F, 1>(a, lda, part, to, ldc, n);
  }
}

template <class V, int F, int N, class T>
static void add_panel(const T* a, i64 lda, const T* b, i64 ldb, T* c, i64 ldc, i32 n) {
  constexpr int R = block_rows(N);
  for (i32 f = 0; f < F; f += R) block<V, R, N, true>(a + f, 1, lda, b, ldb, c + f * ldc, ldc, n);
}
// c[F, G] += a[n, F]^T b[n, G]; c has rows of whole vectors, and whole blocks of rows
template <class V, int F, int G, class T>
static void add_outer(const T* a, i64 lda, const T* b, i64 ldb, T* c, i64 ldc, i32 n) {
  constexpr int L = traits<V>::lanes, vectors = (G + L - 1) / L;
  const Normal normal;
  for (int panel = 0; panel < num_panels(vectors); ++panel) {
    const int start = panel_start(vectors, panel), size = panel_start(vectors, panel + 1) - start;
    if constexpr (vectors >= 4) if (size == 4) add_panel<V, F, 4>(a, lda, b + start * L, ldb, c + start * L, ldc, n);
    if constexpr (vectors >= 3) if (size == 3) add_panel<V, F, 3>(a, lda, b + start * L, ldb, c + start * L, ldc, n);
    if constexpr (vectors >= 2) if (size == 2) add_panel<V, F, 2>(a, lda, b + start * L, ldb, c + start * L, ldc, n);
    if constexpr (vectors == 1) add_panel<V, F, 1>(a, lda, b, ldb, c, ldc, n);
  }
}

// to[F, G] = the sum of the tasks' parts, in the order of the tasks; a part has `size` numbers, `stride` between its rows
template <class T>
static void merge_products(T* to, const T* parts, i64 tasks, i64 size, i64 rows, i64 columns, i64 stride, i32 threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (i64 f = 0; f < rows; ++f) {
    T* const row = to + f * columns;
    for (i64 g = 0; g < columns; ++g) row[g] = parts[f * stride + g];
    for (i64 task = 1; task < tasks; ++task) {
      const T* const part = parts + task * size + f * stride;
      for (i64 g = 0; g < columns; ++g) row[g] += part[g];
    }
  }
}

// --- tiles and chunks of rows -----------------------------------------------------------------------------------------

// The rows from `row` on that make a chunk: one, or as many as have `size` edges and rows together.
INLINE i64 chunk_end(const i64* indptr, i64 row, i64 last, i64 size) {
  i64 end = row + 1;
  while (end < last && indptr[end + 1] - indptr[row] + end + 1 - row <= size) ++end;
  return end;
}
// The row of every edge of a tile; `row` is that of an edge before, and the last edge's is returned.
INLINE i64 rows_of_tile(i32* row_at, const i64* indptr, i64 row, i64 first, i32 n) {
  for (i32 k = 0; k < n;) {
    while (indptr[row + 1] <= first + k) ++row;
    const i32 stop = (i32)smaller(n, indptr[row + 1] - first);
    for (; k < stop; ++k) row_at[k] = (i32)row;
  }
  return row;
}
template <int L, class I> INLINE void tile_position(i64* to, const I* edge_id, i64 first, i32 n) {
  for (i32 k = 0; k < L; ++k) to[k] = k >= n ? 0 : edge_id ? (i64)edge_id[first + k] : first + k;
}
