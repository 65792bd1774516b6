// AVX2 with FMA. See vector_avx512.h for what each function computes.

#pragma once

#include <immintrin.h>

constexpr int LANES = 8;
constexpr int TILE_ROWS = 2;

using Floats = __m256;
using Ints = __m256i;

struct Words {
    __m256i part[2];
};

struct Levels {
    __m256i bytes;
    int shift;
};

inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats set1(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats absolute(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

inline float sum_of(Floats x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float largest_of(Floats x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline Floats round(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline Floats multiply_by_power(Floats x, Floats n) {
    const __m256i power = _mm256_cvtps_epi32(max(n, set1(-126.0f)));
    return mul(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(power, _mm256_set1_epi32(127)), 23)));
}

inline Floats widen(const bf16* x) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}

inline __m128i pack_int32(__m256i x, bool is_signed) {  // eight integers of 32 bits to 16, saturated
    const __m128i low = _mm256_castsi256_si128(x), high = _mm256_extracti128_si256(x, 1);
    return is_signed ? _mm_packs_epi32(low, high) : _mm_packus_epi32(low, high);
}

inline void narrow(bf16* to, Floats x) {
    const __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i kept = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7FC0), is_nan);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), pack_int32(kept, false));
}

inline Floats from_int16(const int16_t* x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}

inline void to_int16(int16_t* to, Floats x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), pack_int32(_mm256_cvtps_epi32(x), true));
}

inline void store_sums(float* to, Floats a, Floats b, Floats c, Floats d) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));  // a, b, c, d in each half
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

inline Ints zero_ints() { return _mm256_setzero_si256(); }
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }

inline Words load_words(const void* x) {
    const __m256i* at = static_cast<const __m256i*>(x);
    return Words{{_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)}};
}

inline void store_words(int16_t* to, Words x) {
    for (int n = 0; n < 2; n++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + n, x.part[n]);
}

inline Floats dot_bf16(Floats sum, Words a, Words b) {
    const __m256i upper = _mm256_set1_epi32(int(0xFFFF0000));
    const auto even = [](__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); };
    const auto odd = [upper](__m256i x) { return _mm256_castsi256_ps(_mm256_and_si256(x, upper)); };
    for (int n = 0; n < 2; n++)
        sum = fma(odd(a.part[n]), odd(b.part[n]), fma(even(a.part[n]), even(b.part[n]), sum));
    return sum;
}

inline Ints product_int16(Words a, Words b) {
    return _mm256_add_epi32(_mm256_madd_epi16(a.part[0], b.part[0]), _mm256_madd_epi16(a.part[1], b.part[1]));
}

inline Ints dot_int16(Ints sum, Words a, Words b) {
    for (int n = 0; n < 2; n++) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a.part[n], b.part[n]));
    return sum;
}

inline Words widen_bytes(__m256i x) {
    return Words{{_mm256_cvtepi8_epi16(_mm256_castsi256_si128(x)), _mm256_cvtepi8_epi16(_mm256_extracti128_si256(x, 1))}};
}

inline Words read_8_bits(const uint8_t* x) {
    return widen_bytes(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

inline Words shift_left(Words x, int bits) {
    for (__m256i& part : x.part) part = _mm256_sll_epi16(part, _mm_cvtsi32_si128(bits));
    return x;
}

inline Levels load_levels(const int8_t* levels, int shift) {
    return Levels{_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels))), shift};
}

inline void read_4_bits(const uint8_t* x, Levels levels, Words* out) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)), low = _mm256_set1_epi8(15);
    const auto level = [&](__m256i index) {
        const Words whole = widen_bytes(_mm256_shuffle_epi8(levels.bytes, _mm256_and_si256(index, low)));
        return levels.shift ? shift_left(whole, levels.shift) : whole;
    };
    out[0] = level(raw);
    out[1] = level(_mm256_srli_epi16(raw, 4));
}

inline Words multiply_fraction(Words x, const uint32_t* factor) {
    for (__m256i& part : x.part) part = _mm256_mulhrs_epi16(part, _mm256_set1_epi32(int(*factor)));
    return x;
}

inline void prefetch(const void* x) { _mm_prefetch(static_cast<const char*>(x), _MM_HINT_T0); }
