// The processor's own operations that kernels use. g++ reads <immintrin.h> for half a second, as long as it builds a small kernel
// for, so the few functions that are needed of it stand here, over the same builtins; other compilers read it.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__AVX512F__) && __has_builtin(__builtin_ia32_vfmaddps512_mask) && __has_builtin(__builtin_ia32_scalefps512_mask) && \
    __has_builtin(__builtin_ia32_vfmaddps256)
#define PLAIT_OWN_AVX512 1
#define PLAIT_OWN_AVX2 1
#elif defined(__AVX2__) && !defined(__AVX512F__) && __has_builtin(__builtin_ia32_vfmaddps256)
#define PLAIT_OWN_AVX2 1
#elif defined(__AVX2__)
#include <immintrin.h>
#endif

#ifdef PLAIT_OWN_AVX2
#define PLAIT_INTRINSIC static inline __attribute__((always_inline))
#define PLAIT_REGISTER(name, scalar, bytes) typedef scalar name __attribute__((vector_size(bytes), may_alias));
PLAIT_REGISTER(__m128, float, 16)
PLAIT_REGISTER(__m256, float, 32)
PLAIT_REGISTER(__m128d, double, 16)
PLAIT_REGISTER(__m256d, double, 32)
PLAIT_INTRINSIC unsigned _mm_getcsr() { return __builtin_ia32_stmxcsr(); }
PLAIT_INTRINSIC void _mm_setcsr(unsigned a) { __builtin_ia32_ldmxcsr(a); }
#ifdef __FMA__
PLAIT_INTRINSIC __m128 _mm_fmadd_ps(__m128 a, __m128 b, __m128 c) { return __builtin_ia32_vfmaddps(a, b, c); }
PLAIT_INTRINSIC __m256 _mm256_fmadd_ps(__m256 a, __m256 b, __m256 c) { return __builtin_ia32_vfmaddps256(a, b, c); }
PLAIT_INTRINSIC __m128d _mm_fmadd_pd(__m128d a, __m128d b, __m128d c) { return __builtin_ia32_vfmaddpd(a, b, c); }
PLAIT_INTRINSIC __m256d _mm256_fmadd_pd(__m256d a, __m256d b, __m256d c) { return __builtin_ia32_vfmaddpd256(a, b, c); }
#endif
PLAIT_INTRINSIC __m256 _mm256_sqrt_ps(__m256 a) { return __builtin_ia32_sqrtps256(a); }
PLAIT_INTRINSIC __m256d _mm256_sqrt_pd(__m256d a) { return __builtin_ia32_sqrtpd256(a); }
#endif

#ifdef PLAIT_OWN_AVX512
PLAIT_REGISTER(__m512, float, 64)
PLAIT_REGISTER(__m512d, double, 64)
PLAIT_REGISTER(__m512i, long long, 64)
PLAIT_REGISTER(plait_i32x16, int, 64)
typedef unsigned char __mmask8;
typedef unsigned short __mmask16;
#define PLAIT_ALL (__mmask16)-1
#define PLAIT_ROUNDING 4  // as the control register says
#define _CMP_UNORD_Q 3
PLAIT_INTRINSIC __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return __builtin_ia32_vfmaddps512_mask(a, b, c, PLAIT_ALL, PLAIT_ROUNDING);
}
PLAIT_INTRINSIC __m512d _mm512_fmadd_pd(__m512d a, __m512d b, __m512d c) {
  return __builtin_ia32_vfmaddpd512_mask(a, b, c, (__mmask8)-1, PLAIT_ROUNDING);
}
PLAIT_INTRINSIC __m512 _mm512_sqrt_ps(__m512 a) { return __builtin_ia32_sqrtps512_mask(a, a, PLAIT_ALL, PLAIT_ROUNDING); }
PLAIT_INTRINSIC __m512d _mm512_sqrt_pd(__m512d a) { return __builtin_ia32_sqrtpd512_mask(a, a, (__mmask8)-1, PLAIT_ROUNDING); }
PLAIT_INTRINSIC __m512 _mm512_max_ps(__m512 a, __m512 b) {
  return __builtin_ia32_maxps512_mask(a, b, a, PLAIT_ALL, PLAIT_ROUNDING);
}
PLAIT_INTRINSIC __m512 _mm512_min_ps(__m512 a, __m512 b) {
  return __builtin_ia32_minps512_mask(a, b, a, PLAIT_ALL, PLAIT_ROUNDING);
}
#define _mm512_cmp_ps_mask(a, b, how) ((__mmask16)__builtin_ia32_cmpps512_mask(a, b, how, PLAIT_ALL, PLAIT_ROUNDING))
PLAIT_INTRINSIC __m512 _mm512_mask_mov_ps(__m512 a, __mmask16 mask, __m512 b) { return __builtin_ia32_movaps512_mask(b, a, mask); }
PLAIT_INTRINSIC __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  return __builtin_ia32_scalefps512_mask(a, b, a, PLAIT_ALL, PLAIT_ROUNDING);
}
PLAIT_INTRINSIC __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* from) {
  return (__m512i)__builtin_ia32_loaddqusi512_mask((const int*)from, (plait_i32x16){}, mask);
}
PLAIT_INTRINSIC __m512i _mm512_permutexvar_epi32(__m512i index, __m512i a) {
  return (__m512i)__builtin_ia32_permvarsi512_mask((plait_i32x16)a, (plait_i32x16)index, (plait_i32x16)a, PLAIT_ALL);
}
#endif
