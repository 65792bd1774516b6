// AVX-512 (F, BW, DQ, VL), with the bf16 and integer products of later processors where they are compiled in.

#pragma once

#include <immintrin.h>

constexpr int LANES = 16;
constexpr int TILE_ROWS = 6;  // rows of x whose sums with four rows of the matrix stay in registers

using Floats = __m512;
using Ints = __m512i;
using Words = __m512i;
using Levels = __m512i;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats set1(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where one is NaN; on Arm NaN
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats absolute(Floats a) { return _mm512_abs_ps(a); }
inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }

inline Floats round(Floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline Floats multiply_by_power(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }  // x 2^n, n whole

inline Floats widen(const bf16* x) {  // LANES values to fp32
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

inline void narrow(bf16* to, Floats x) {  // LANES values to the nearest bf16, ties to even
#if defined(__AVX512BF16__)
    const __m256i raw = (__m256i)_mm512_cvtneps_pbh(x);
#else
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m256i raw = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(up, is_nan, _mm512_set1_epi32(0x7FC0)));
#endif
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), raw);
}

inline Floats from_int16(const int16_t* x) {  // LANES integers to fp32
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))));
}

inline void to_int16(int16_t* to, Floats x) {  // LANES values to the nearest integers; they must fit
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}

inline void store_sums(float* to, Floats a, Floats b, Floats c, Floats d) {  // the sum of each of the four, in order
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));  // a, b, c, d in each quarter
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

inline Ints zero_ints() { return _mm512_setzero_si512(); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

inline Words load_words(const void* x) { return _mm512_loadu_si512(x); }
inline void store_words(int16_t* to, Words x) { _mm512_storeu_si512(to, x); }

inline Floats dot_bf16(Floats sum, Words a, Words b) {  // adds 32 products of bf16 to the lanes
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
    const __m512i upper = _mm512_set1_epi32(int(0xFFFF0000));
    const auto even = [](Words x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); };
    const auto odd = [upper](Words x) { return _mm512_castsi512_ps(_mm512_and_si512(x, upper)); };
    return fma(odd(a), odd(b), fma(even(a), even(b), sum));
#endif
}

inline Ints product_int16(Words a, Words b) { return _mm512_madd_epi16(a, b); }  // the first 32 products

inline Ints dot_int16(Ints sum, Words a, Words b) {  // adds 32 products of integers to the lanes
#if defined(__AVX512VNNI__)
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));  // GCC copies the intrinsic's sum back and forth
    return sum;
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

inline Words read_8_bits(const uint8_t* x) {  // 32 columns of int8
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

inline Words shift_left(Words x, int bits) { return _mm512_sll_epi16(x, _mm_cvtsi32_si128(bits)); }

inline Levels load_levels(const int8_t* levels, int shift) {  // times 2^shift; twice, as the lookup reads 5 bits
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels));
    return shift_left(_mm512_cvtepi8_epi16(_mm256_broadcastsi128_si256(raw)), shift);
}

inline void read_4_bits(const uint8_t* x, Levels levels, Words* out) {  // 64 columns: low halves of the bytes, then high
    const __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    out[0] = _mm512_permutexvar_epi16(both, levels);
    out[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), levels);
}

inline Words multiply_fraction(Words x, const uint32_t* factor) {  // round(x factor / 2^15); the factor is there twice
    return _mm512_mulhrs_epi16(x, _mm512_set1_epi32(int(*factor)));
}

inline void prefetch(const void* x) { _mm_prefetch(static_cast<const char*>(x), _MM_HINT_T0); }
