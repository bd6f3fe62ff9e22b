// Functions of generated kernels: arithmetic with one meaning in every vector length, horizontal reductions, random bits.
//
// One IR value must have the same bits wherever it is computed (the backward compares values it computes again), so every
// function here does the same operations on a lane for any number of lanes, and nothing is contracted behind our back.

// --- arithmetic ------------------------------------------------------------------------------------------------------

template <class V> INLINE V fma(V a, V b, V c) {
#ifdef PLAIT_FMA
  V v;
  for (int l = 0; l < traits<V>::lanes; ++l) {
    if constexpr (sizeof(scalar_of<V>) == 4) v[l] = __builtin_fmaf(a[l], b[l], c[l]);
    else v[l] = __builtin_fma(a[l], b[l], c[l]);
  }
  return v;
#else
  return a * b + c;
#endif
}
#ifdef __FMA__
INLINE f32x4 fma(f32x4 a, f32x4 b, f32x4 c) { return (f32x4)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c); }
INLINE f32x8 fma(f32x8 a, f32x8 b, f32x8 c) { return (f32x8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE f64x2 fma(f64x2 a, f64x2 b, f64x2 c) { return (f64x2)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c); }
INLINE f64x4 fma(f64x4 a, f64x4 b, f64x4 c) { return (f64x4)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#endif
#ifdef __AVX512F__
INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE f64x8 fma(f64x8 a, f64x8 b, f64x8 c) { return (f64x8)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#endif
#if defined(__ARM_NEON) && defined(__aarch64__)
INLINE f32x4 fma(f32x4 a, f32x4 b, f32x4 c) { return (f32x4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE f64x2 fma(f64x2 a, f64x2 b, f64x2 c) { return (f64x2)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#endif

// NaN wins, as in torch: the comparison (and the instruction) takes b if there is a NaN in either
template <class V> INLINE V maximum(V a, V b) {
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64 && sizeof(scalar_of<V>) == 4 && (scalar_of<V>)0.5 != 0)
    return (V)_mm512_mask_mov_ps(_mm512_max_ps((__m512)a, (__m512)b), _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_UNORD_Q), (__m512)a);
#endif
  const V t = a > b ? a : b;
  return a != a ? a : t;
}
template <class V> INLINE V minimum(V a, V b) {
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64 && sizeof(scalar_of<V>) == 4 && (scalar_of<V>)0.5 != 0)
    return (V)_mm512_mask_mov_ps(_mm512_min_ps((__m512)a, (__m512)b), _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_UNORD_Q), (__m512)a);
#endif
  const V t = a < b ? a : b;
  return a != a ? a : t;
}
template <class V> INLINE V absolute(V a) {
  if constexpr ((scalar_of<V>)0.5 == 0) return a < 0 ? -a : a;
  else return (V)((mask_of<V>)a & ~(mask_of<V>)(bc<V>((scalar_of<V>)-0.0)));
}
template <class V> INLINE V sign(V a) {
  const V zero = {}, one = zero + (scalar_of<V>)1;
  return (a > zero ? one : zero) - (a < zero ? one : zero);
}

#define PLAIT_BY_LANE(NAME, F32, F64)                              \
  template <class V> INLINE V NAME(V a) {                          \
    V v;                                                           \
    for (int l = 0; l < traits<V>::lanes; ++l) {                   \
      if constexpr (sizeof(scalar_of<V>) == 4) v[l] = F32(a[l]);   \
      else v[l] = F64(a[l]);                                       \
    }                                                              \
    return v;                                                      \
  }
#define PLAIT_BY_LANE2(NAME, F32, F64)                                 \
  template <class V> INLINE V NAME(V a, V b) {                         \
    V v;                                                               \
    for (int l = 0; l < traits<V>::lanes; ++l) {                       \
      if constexpr (sizeof(scalar_of<V>) == 4) v[l] = F32(a[l], b[l]); \
      else v[l] = F64(a[l], b[l]);                                     \
    }                                                                  \
    return v;                                                          \
  }
PLAIT_BY_LANE(square_root_lanes, __builtin_sqrtf, __builtin_sqrt)
PLAIT_BY_LANE(floor_lanes, __builtin_floorf, __builtin_floor)
PLAIT_BY_LANE(ceil_lanes, __builtin_ceilf, __builtin_ceil)
PLAIT_BY_LANE(round_lanes, __builtin_rintf, __builtin_rint)
PLAIT_BY_LANE(trunc_lanes, __builtin_truncf, __builtin_trunc)
PLAIT_BY_LANE(sin_lanes, __builtin_sinf, __builtin_sin)
PLAIT_BY_LANE(cos_lanes, __builtin_cosf, __builtin_cos)
PLAIT_BY_LANE(erf_lanes, __builtin_erff, __builtin_erf)
PLAIT_BY_LANE(exp_lanes, __builtin_expf, __builtin_exp)
PLAIT_BY_LANE(expm1_lanes, __builtin_expm1f, __builtin_expm1)
PLAIT_BY_LANE(log_lanes, __builtin_logf, __builtin_log)
PLAIT_BY_LANE(log1p_lanes, __builtin_log1pf, __builtin_log1p)
PLAIT_BY_LANE(tanh_lanes, __builtin_tanhf, __builtin_tanh)
PLAIT_BY_LANE2(pow_lanes, __builtin_powf, __builtin_pow)
PLAIT_BY_LANE2(atan2_lanes, __builtin_atan2f, __builtin_atan2)

template <class V> INLINE V square_root(V a) {
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64) {
    if constexpr (sizeof(scalar_of<V>) == 4) return (V)_mm512_sqrt_ps((__m512)a);
    else return (V)_mm512_sqrt_pd((__m512d)a);
  } else
#endif
#ifdef __AVX2__
  if constexpr (sizeof(V) == 32) {
    if constexpr (sizeof(scalar_of<V>) == 4) return (V)_mm256_sqrt_ps((__m256)a);
    else return (V)_mm256_sqrt_pd((__m256d)a);
  } else
#endif
  return square_root_lanes(a);
}

// p * 2^n, n a whole number in [-160, 160]: two exact halves, so results round once, also below the normal range
template <class V> INLINE V scale2(V p, V n) {
  typedef mask_of<V> I;
  const I whole = __builtin_convertvector(n, I), half = whole >> 1;
  return p * (V)((half + 127) << 23) * (V)((whole - half + 127) << 23);
}
#ifdef __AVX512F__
INLINE f32x16 scale2(f32x16 p, f32x16 n) { return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n); }
#endif

// x = n ln 2 + f with |f| <= ln 2 / 2, and e^f - 1 - f (Cephes)
template <class V> INLINE V exp_split(V x, V* f) {
  const V n = fma(x, bc<V>(1.44269504088896341f), bc<V>(12582912.f)) - 12582912.f;
  *f = fma(n, bc<V>(2.12194440e-4f), fma(n, bc<V>(-0.693359375f), x));
  return n;
}
template <class V> INLINE V exp_rest(V f) {
  V p = bc<V>(1.9875691500e-4f);
  p = fma(p, f, bc<V>(1.3981999507e-3f));
  p = fma(p, f, bc<V>(8.3334519073e-3f));
  p = fma(p, f, bc<V>(4.1665795894e-2f));
  p = fma(p, f, bc<V>(1.6666665459e-1f));
  p = fma(p, f, bc<V>(5.0000001201e-1f));
  return p * (f * f);
}
// about 1 ulp; the clamps are past overflow to inf and underflow to 0, NaN passes them
template <class V> INLINE V exponential(V x) {
  if constexpr (sizeof(scalar_of<V>) == 8) return exp_lanes(x);
  else {
    x = x < bc<V>(-105.f) ? bc<V>(-105.f) : x;
    x = x > bc<V>(89.f) ? bc<V>(89.f) : x;
    V f;
    const V n = exp_split(x, &f);
    return scale2((exp_rest(f) + f) + 1.f, n);
  }
}
template <class V> INLINE V exponential_minus_1(V x) {
  if constexpr (sizeof(scalar_of<V>) == 8) return expm1_lanes(x);
  else {
    const V given = x;
    x = x < bc<V>(-105.f) ? bc<V>(-105.f) : x;
    x = x > bc<V>(89.f) ? bc<V>(89.f) : x;
    V f;
    const V n = exp_split(x, &f);
    const V p = exp_rest(f) + f, s = scale2(bc<V>(1.f), n);
    const V large = scale2(p + 1.f, n) - 1.f;
    const V small = fma(s, p, s - 1.f);
    const V v = n > bc<V>(24.f) ? large : small;
    return given == 0.f ? given : v;
  }
}
// Cephes logf: x = m 2^e with m in [sqrt(1/2), sqrt(2)); numbers below the normal range are scaled up first
template <class V> INLINE V logarithm(V x) {
  if constexpr (sizeof(scalar_of<V>) == 8) return log_lanes(x);
  else {
    typedef mask_of<V> I;
    const I tiny = x < bc<V>(1.17549435e-38f);
    const V given = tiny ? x * 8388608.f : x;
    const I bits = (I)given;
    I e = ((bits >> 23) & 255) - 126;
    V m = (V)((bits & 0x007fffff) | 0x3f000000);
    const I low = m < bc<V>(0.707106781186547524f);
    e = e + low - (tiny & 23);
    m = (low ? m + m : m) - 1.f;
    const V z = m * m;
    V p = bc<V>(7.0376836292e-2f);
    p = fma(p, m, bc<V>(-1.1514610310e-1f));
    p = fma(p, m, bc<V>(1.1676998740e-1f));
    p = fma(p, m, bc<V>(-1.2420140846e-1f));
    p = fma(p, m, bc<V>(1.4249322787e-1f));
    p = fma(p, m, bc<V>(-1.6668057665e-1f));
    p = fma(p, m, bc<V>(2.0000714765e-1f));
    p = fma(p, m, bc<V>(-2.4999993993e-1f));
    p = fma(p, m, bc<V>(3.3333331174e-1f));
    const V n = __builtin_convertvector(e, V);
    V y = fma(n, bc<V>(-2.12194440e-4f), p * m * z);
    y = fma(z, bc<V>(-0.5f), y);
    V v = fma(n, bc<V>(0.693359375f), m + y);
    const V inf = bc<V>(__builtin_inff());
    v = x == inf ? inf : v;
    v = x == 0.f ? -inf : v;
    v = x < 0.f ? bc<V>(__builtin_nanf("")) : v;
    return x != x ? x : v;
  }
}
// log(1 + x) = log(u) x / (u - 1) with u = 1 + x rounded (Kahan)
template <class V> INLINE V logarithm_1p(V x) {
  if constexpr (sizeof(scalar_of<V>) == 8) return log1p_lanes(x);
  else {
    const V u = x + 1.f, d = u - 1.f;
    const V v = logarithm(u) * (x / d);
    const V w = u > bc<V>(1e30f) ? logarithm(u) : v;
    const V near = u <= 0.f ? logarithm(u) : w;
    return d == 0.f ? x : near;
  }
}
template <class V> INLINE V hyperbolic_tangent(V x) {
  if constexpr (sizeof(scalar_of<V>) == 8) return tanh_lanes(x);
  else {
    const V a = absolute(x), z = x * x;
    const V large = 1.f - 2.f / (exponential(a + a) + 1.f);
    V p = bc<V>(-5.70498872745e-3f);
    p = fma(p, z, bc<V>(2.06390887954e-2f));
    p = fma(p, z, bc<V>(-5.37397155531e-2f));
    p = fma(p, z, bc<V>(1.33314422036e-1f));
    p = fma(p, z, bc<V>(-3.33332819422e-1f));
    const V small = fma(p * z, x, x);
    const V v = x < 0.f ? -large : large;
    return a < 0.625f ? small : v;
  }
}
template <class V> INLINE V sigmoid(V x) { return (scalar_of<V>)1 / (exponential(-x) + (scalar_of<V>)1); }
template <class V> INLINE V reciprocal(V x) { return (scalar_of<V>)1 / x; }
template <class V> INLINE V reciprocal_root(V x) { return (scalar_of<V>)1 / square_root(x); }

// --- one number from the lanes: partners 2, 1, 8, 4 lanes apart, in this order, whoever does it -------------------------

struct Sum { template <class T> INLINE T of(T a, T b) { return a + b; } };
struct Prod { template <class T> INLINE T of(T a, T b) { return a * b; } };
struct Max { template <class T> INLINE T of(T a, T b) { return maximum(a, b); } };
struct Min { template <class T> INLINE T of(T a, T b) { return minimum(a, b); } };

template <class O, class V> INLINE V fold2(V v) {
  if constexpr (traits<V>::lanes == 16) return O::of(v, (V)__builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  else if constexpr (traits<V>::lanes == 8) return O::of(v, (V)__builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  else if constexpr (traits<V>::lanes == 4) return O::of(v, (V)__builtin_shufflevector(v, v, 2, 3, 0, 1));
  else return v;
}
template <class O, class V> INLINE V fold1(V v) {
  if constexpr (traits<V>::lanes == 16) return O::of(v, (V)__builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  else if constexpr (traits<V>::lanes == 8) return O::of(v, (V)__builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
  else if constexpr (traits<V>::lanes == 4) return O::of(v, (V)__builtin_shufflevector(v, v, 1, 0, 3, 2));
  else if constexpr (traits<V>::lanes == 2) return O::of(v, (V)__builtin_shufflevector(v, v, 1, 0));
  else return v;
}
// lanes 8 and 4 apart: what is left has at most 4 lanes
template <class O, class V> INLINE auto fold84(V v) {
  if constexpr (traits<V>::lanes == 16) {
    typedef typename vector_of<scalar_of<V>, 8>::type H;
    return fold84<O>(O::of((H)__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), (H)__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)));
  } else if constexpr (traits<V>::lanes == 8) {
    typedef typename vector_of<scalar_of<V>, 4>::type H;
    return O::of((H)__builtin_shufflevector(v, v, 0, 1, 2, 3), (H)__builtin_shufflevector(v, v, 4, 5, 6, 7));
  } else return v;
}
template <class O, class V> INLINE scalar_of<V> fold(V v) { return fold84<O>(fold1<O>(fold2<O>(v)))[0]; }

// the same for four vectors at once: number j of the result is fold(v_j)
template <class O, class V> INLINE auto fold4(V a, V b, V c, V d) {
  if constexpr (traits<V>::lanes >= 4) {
    const V ab = O::of(low_pairs(a, b), high_pairs(a, b)), cd = O::of(low_pairs(c, d), high_pairs(c, d));
    return fold84<O>(O::of(low_halves(ab, cd), high_halves(ab, cd)));
  } else {
    typedef typename vector_of<scalar_of<V>, 4>::type H;
    return (H){fold<O>(a), fold<O>(b), fold<O>(c), fold<O>(d)};
  }
}

// --- random bits: plait.segment.counter_bits ----------------------------------------------------------------------------

template <class U> INLINE U mix(U x) {
  x = x ^ (x >> 16);
  x = x * 0x7FEB352Du;
  x = x ^ (x >> 15);
  x = x * 0x846CA68Bu;
  return x ^ (x >> 16);
}
template <int L> INLINE void random_row(u32* to, const i64* position, i64 seed) {
  for (int l = 0; l < L; ++l) to[l] = mix(mix((u32)position[l]) ^ (u32)seed) + (u32)((uint64_t)position[l] >> 32);
}
// channel times 0x9E3779B9, or one channel's for every lane
template <class V, class U> INLINE V uniform(U row, U channel, i64 seed) {
  const U bits = mix(mix(row + channel * 0x9E3779B9u) ^ (u32)((uint64_t)seed >> 32)) >> 8;
  return __builtin_convertvector((typename vector_of<i32, traits<U>::lanes>::type)bits, V) * (scalar_of<V>)0x1p-24;
}

// --- rows, tasks, memory of a thread --------------------------------------------------------------------------------------

// Task t of `tasks` starts at the first row with (edges + rows before it) >= t / tasks of all: depends on sizes only.
INLINE i64 first_row(const i64* indptr, i64 num_rows, i64 num_edges, i64 t, i64 tasks) {
  const i64 goal = (i64)((__int128)(num_rows + num_edges) * t / tasks);
  i64 low = 0, high = num_rows;
  while (low < high) {
    const i64 middle = (low + high) / 2;
    if (indptr[middle] + middle < goal) low = middle + 1;
    else high = middle;
  }
  return low;
}
INLINE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 clamp(i64 x, i64 low, i64 high) { return x < low ? low : x > high ? high : x; }

struct Memory {
  char* data = nullptr;
  i64 size = 0;
  template <class T> T* of(i64 count) {
    const i64 bytes = (count * (i64)sizeof(T) + 127) / 64 * 64;
    if (bytes > size) {
      free(data);
      size = bytes + bytes / 2 / 64 * 64;
      data = (char*)aligned_alloc(64, (size_t)size);
    }
    return (T*)data;
  }
  ~Memory() { free(data); }
};
