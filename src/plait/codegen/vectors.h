// Vectors of generated kernels: their types, and how they are read from memory and written to it.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define PLAIT_FMA 1
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float f32;
typedef double f64;
typedef int32_t i32;
typedef int64_t i64;
typedef uint32_t u32;
typedef uint8_t u8;
typedef uint16_t bf16;  // in tensors; in vectors it is the f32 of the same upper half

template <class V> struct traits;
template <class T, int L> struct vector_of;
#define PLAIT_VECTOR(T, L, M)                                                                          \
  typedef T T##x##L __attribute__((vector_size(L * sizeof(T))));                                       \
  typedef T T##x##L##_loose __attribute__((vector_size(L * sizeof(T)), aligned(sizeof(T)), may_alias)); \
  template <> struct traits<T##x##L> {                                                                 \
    typedef T scalar;                                                                                  \
    typedef T##x##L##_loose loose;                                                                     \
    typedef M mask;                                                                                    \
    static const int lanes = L;                                                                        \
  };                                                                                                   \
  template <> struct vector_of<T, L> { typedef T##x##L type; };
#define PLAIT_VECTORS(L)                                                                               \
  PLAIT_VECTOR(i32, L, i32x##L)                                                                        \
  PLAIT_VECTOR(i64, L, i64x##L)                                                                        \
  PLAIT_VECTOR(u32, L, i32x##L)                                                                        \
  PLAIT_VECTOR(bf16, L, i32x##L)                                                                       \
  PLAIT_VECTOR(f32, L, i32x##L)                                                                        \
  PLAIT_VECTOR(f64, L, i64x##L)
PLAIT_VECTORS(1)
PLAIT_VECTORS(2)
PLAIT_VECTORS(4)
PLAIT_VECTORS(8)
PLAIT_VECTORS(16)

template <class V> using scalar_of = typename traits<V>::scalar;
template <class V> using mask_of = typename traits<V>::mask;

template <int L> INLINE typename vector_of<i32, L>::type iota() {
  typename vector_of<i32, L>::type v;
  for (int l = 0; l < L; ++l) v[l] = l;
  return v;
}

// --- memory ----------------------------------------------------------------------------------------------------------

template <class V> INLINE V ld(const void* p) { return *(const typename traits<V>::loose*)p; }
template <class V> INLINE void st(void* p, V v) { *(typename traits<V>::loose*)p = v; }
template <class V> INLINE V bc(scalar_of<V> a) { return a - (V){}; }  // a - 0 keeps the sign of -0
template <class V> INLINE V ld_u8(const u8* p) {
  V v;
  for (int l = 0; l < traits<V>::lanes; ++l) v[l] = -(i32)(p[l] != 0);
  return v;
}
template <class V> INLINE V bc_u8(u8 a) { return bc<V>(-(i32)(a != 0)); }
template <class V> INLINE void st_u8(u8* p, V m) {
  for (int l = 0; l < traits<V>::lanes; ++l) p[l] = (u8)(m[l] != 0);
}
// two halves as one vector
template <class V, class H> INLINE V join(H a, H b) {
  if constexpr (traits<V>::lanes == 16) return (V)__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  else if constexpr (traits<V>::lanes == 8) return (V)__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
  else return (V)__builtin_shufflevector(a, b, 0, 1, 2, 3);
}
// in halves: short chains of inserts (one long chain, which a loop over all lanes gives, waits for each load)
template <class V, class I> INLINE V gather(const scalar_of<V>* p, const I* index, i64 stride) {
  if constexpr (traits<V>::lanes > 4) {
    typedef typename vector_of<scalar_of<V>, traits<V>::lanes / 2>::type H;
    return join<V>(gather<H>(p, index, stride), gather<H>(p, index + traits<V>::lanes / 2, stride));
  } else if constexpr (traits<V>::lanes == 4) {
    return (V){p[(i64)index[0] * stride], p[(i64)index[1] * stride], p[(i64)index[2] * stride], p[(i64)index[3] * stride]};
  } else {
    V v;
    for (int l = 0; l < traits<V>::lanes; ++l) v[l] = p[(i64)index[l] * stride];
    return v;
  }
}
// four neighbouring numbers of rows 0, 4, 8, 12
template <class V, class I> INLINE V every_fourth(const f32* p, const I* index, i64 stride) {
  if constexpr (traits<V>::lanes == 4) return ld<f32x4>(p + (i64)index[0] * stride);
  else {
    typedef typename vector_of<f32, traits<V>::lanes / 2>::type H;
    return join<V>(every_fourth<H>(p, index, stride), every_fourth<H>(p, index + traits<V>::lanes / 2, stride));
  }
}
template <class V> INLINE V low_pairs(V a, V b) {
  if constexpr (traits<V>::lanes == 16) return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
  else if constexpr (traits<V>::lanes == 8) return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
  else return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
template <class V> INLINE V high_pairs(V a, V b) {
  if constexpr (traits<V>::lanes == 16) return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  else if constexpr (traits<V>::lanes == 8) return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  else return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
template <class V> INLINE V low_halves(V a, V b) {
  if constexpr (traits<V>::lanes == 16) return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
  else if constexpr (traits<V>::lanes == 8) return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
  else return __builtin_shufflevector(a, b, 0, 1, 4, 5);
}
template <class V> INLINE V high_halves(V a, V b) {
  if constexpr (traits<V>::lanes == 16) return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  else if constexpr (traits<V>::lanes == 8) return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  else return __builtin_shufflevector(a, b, 2, 3, 6, 7);
}
template <class V> struct Four { V a, b, c, d; };
// four neighbouring numbers of every row at once: rows are read as they lie and transposed
template <class V, class I> INLINE Four<V> gather4(const f32* p, const I* index, i64 stride) {
  const V r0 = every_fourth<V>(p, index, stride), r1 = every_fourth<V>(p, index + 1, stride);
  const V r2 = every_fourth<V>(p, index + 2, stride), r3 = every_fourth<V>(p, index + 3, stride);
  const V a = low_pairs(r0, r1), b = low_pairs(r2, r3), c = high_pairs(r0, r1), d = high_pairs(r2, r3);
  return {low_halves(a, b), high_halves(a, b), low_halves(c, d), high_halves(c, d)};
}
template <class V, class I> INLINE V gather_u8(const u8* p, const I* index, i64 stride) {
  V v;
  for (int l = 0; l < traits<V>::lanes; ++l) v[l] = -(i32)(p[(i64)index[l] * stride] != 0);
  return v;
}
template <class V> INLINE V strided(const scalar_of<V>* p, i64 stride) {
  if constexpr (traits<V>::lanes > 4) {
    typedef typename vector_of<scalar_of<V>, traits<V>::lanes / 2>::type H;
    return join<V>(strided<H>(p, stride), strided<H>(p + traits<V>::lanes / 2 * stride, stride));
  } else {
    V v;
    for (int l = 0; l < traits<V>::lanes; ++l) v[l] = p[l * stride];
    return v;
  }
}
// the first n of the lanes are edges of the row, the others repeat the last of them
template <int L, class I> INLINE void load_index(I* to, const I* from, i32 n) {
  if (n == L) {
    for (int l = 0; l < L; ++l) to[l] = from[l];
    return;
  }
#ifdef __AVX512F__
  if constexpr (L == 16 && sizeof(I) == 4) {
    const i32x16 lane = iota<16>(), last = bc<i32x16>(n - 1);
    const __m512i some = _mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), from);
    st(to, (i32x16)_mm512_permutexvar_epi32((__m512i)(lane < last ? lane : last), some));
    return;
  }
#endif
  const I last = from[n - 1];
  for (int l = 0; l < L; ++l) to[l] = last;
#pragma GCC unroll 1
  for (int l = 0; l < n; ++l) to[l] = from[l];
}
template <int L, class I> INLINE void load_position(i64* to, const I* edge_id, i64 first, i32 n) {
  if (!edge_id) {
    for (int l = 0; l < L; ++l) to[l] = first + (l < n ? l : n - 1);
    return;
  }
  alignas(64) I some[L];
  load_index<L>(some, edge_id + first, n);
  for (int l = 0; l < L; ++l) to[l] = (i64)some[l];
}
template <class V> INLINE void scatter(scalar_of<V>* p, const i64* index, i64 stride, V v, i32 n) {
  for (i32 l = 0; l < n; ++l) p[index[l] * stride] = v[l];
}
template <class V> INLINE void scatter_u8(u8* p, const i64* index, i64 stride, V m, i32 n) {
  for (i32 l = 0; l < n; ++l) p[index[l] * stride] = (u8)(m[l] != 0);
}

// --- bfloat16 ----------------------------------------------------------------------------------------------------------

template <class V> INLINE V widen(typename vector_of<bf16, traits<V>::lanes>::type a) {
  return (V)(__builtin_convertvector(a, typename vector_of<u32, traits<V>::lanes>::type) << 16);
}
template <class V> INLINE typename vector_of<bf16, traits<V>::lanes>::type upper_half(V v) {
  typedef typename vector_of<u32, traits<V>::lanes>::type U;
  return __builtin_convertvector((U)v >> 16, typename vector_of<bf16, traits<V>::lanes>::type);
}
// to the nearest, ties to even; every NaN is the same one
template <class V> INLINE V round_bf16(V v) {
  typedef typename vector_of<u32, traits<V>::lanes>::type U;
  const U bits = (U)(v == v ? v : (V)((U){} + 0x7fc00000u));
  return (V)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}
INLINE f32 widened(bf16 a) { return widen<f32x1>((bf16x1){a})[0]; }
template <class V> INLINE V ld_bf16(const bf16* p) { return widen<V>(ld<typename vector_of<bf16, traits<V>::lanes>::type>(p)); }
template <class V> INLINE V bc_bf16(bf16 a) { return bc<V>(widened(a)); }
template <class V> INLINE void st_bf16(bf16* p, V v) { st(p, upper_half(v)); }
template <class V, class I> INLINE V gather_bf16(const bf16* p, const I* index, i64 stride) {
  return widen<V>(gather<typename vector_of<bf16, traits<V>::lanes>::type>(p, index, stride));
}
template <class V> INLINE void scatter_bf16(bf16* p, const i64* index, i64 stride, V v, i32 n) {
  const auto half = upper_half(v);
  for (i32 l = 0; l < n; ++l) p[index[l] * stride] = half[l];
}

// --- masks: a bool is an i32 lane of 0 or -1 ----------------------------------------------------------------------------

template <class M> INLINE auto to_bool(M m) {
  if constexpr (sizeof(scalar_of<M>) == 4) return m;
  else return __builtin_convertvector(m, typename vector_of<i32, traits<M>::lanes>::type);
}
template <class V, class M> INLINE V sel(M m, V a, V b) {
  if constexpr (sizeof(M) == sizeof(V)) return m ? a : b;
  else return __builtin_convertvector(m, mask_of<V>) ? a : b;
}
template <class V, class W> INLINE V convert(W w) { return __builtin_convertvector(w, V); }
template <class V, class M> INLINE V from_bool(M m) { return sel(m, bc<V>(1), bc<V>(0)); }
