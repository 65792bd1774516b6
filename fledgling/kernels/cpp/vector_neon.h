// NEON of 64-bit Arm, without extensions. See vector_avx512.h for what each function computes.

#pragma once

#include <arm_neon.h>

constexpr int LANES = 4;
constexpr int TILE_ROWS = 4;

using Floats = float32x4_t;
using Ints = int32x4_t;

struct Words {
    int16x8_t part[4];
};

struct Levels {
    int8x16_t bytes;
    int shift;
};

inline Floats zero() { return vdupq_n_f32(0); }
inline Floats set1(float x) { return vdupq_n_f32(x); }
inline Floats load(const float* x) { return vld1q_f32(x); }
inline void store(float* to, Floats x) { vst1q_f32(to, x); }
inline Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
inline Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
inline Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats div(Floats a, Floats b) { return vdivq_f32(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
inline Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
inline Floats absolute(Floats a) { return vabsq_f32(a); }
inline float sum_of(Floats x) { return vaddvq_f32(x); }
inline float largest_of(Floats x) { return vmaxvq_f32(x); }
inline Floats round(Floats x) { return vrndnq_f32(x); }

inline Floats multiply_by_power(Floats x, Floats n) {
    const int32x4_t power = vcvtnq_s32_f32(max(n, set1(-126.0f)));
    return mul(x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(power, vdupq_n_s32(127)), 23)));
}

inline Floats widen(const bf16* x) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(x), 16)); }

inline void narrow(bf16* to, Floats x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), 16);
    const uint32x4_t is_number = vceqq_f32(x, x);
    vst1_u16(to, vmovn_u32(vbslq_u32(is_number, up, vdupq_n_u32(0x7FC0))));
}

inline Floats from_int16(const int16_t* x) { return vcvtq_f32_s32(vmovl_s16(vld1_s16(x))); }
inline void to_int16(int16_t* to, Floats x) { vst1_s16(to, vqmovn_s32(vcvtnq_s32_f32(x))); }

inline void store_sums(float* to, Floats a, Floats b, Floats c, Floats d) {
    vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

inline Ints zero_ints() { return vdupq_n_s32(0); }
inline Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }

inline Words load_words(const void* x) {
    const int16_t* at = static_cast<const int16_t*>(x);
    return Words{{vld1q_s16(at), vld1q_s16(at + 8), vld1q_s16(at + 16), vld1q_s16(at + 24)}};
}

inline void store_words(int16_t* to, Words x) {
    for (int n = 0; n < 4; n++) vst1q_s16(to + 8 * n, x.part[n]);
}

inline Floats dot_bf16(Floats sum, Words a, Words b) {
    const uint32x4_t upper = vdupq_n_u32(0xFFFF0000);
    const auto even = [](int16x8_t x) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_s16(x), 16)); };
    const auto odd = [upper](int16x8_t x) { return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_s16(x), upper)); };
    for (int n = 0; n < 4; n++)
        sum = fma(odd(a.part[n]), odd(b.part[n]), fma(even(a.part[n]), even(b.part[n]), sum));
    return sum;
}

inline Ints dot_int16(Ints sum, Words a, Words b) {
    for (int n = 0; n < 4; n++) {
        sum = vmlal_s16(sum, vget_low_s16(a.part[n]), vget_low_s16(b.part[n]));
        sum = vmlal_high_s16(sum, a.part[n], b.part[n]);
    }
    return sum;
}

inline Ints product_int16(Words a, Words b) { return dot_int16(zero_ints(), a, b); }

inline Words widen_bytes(int8x16_t low, int8x16_t high) {
    return Words{{vmovl_s8(vget_low_s8(low)), vmovl_high_s8(low), vmovl_s8(vget_low_s8(high)), vmovl_high_s8(high)}};
}

inline Words read_8_bits(const uint8_t* x) {
    return widen_bytes(vreinterpretq_s8_u8(vld1q_u8(x)), vreinterpretq_s8_u8(vld1q_u8(x + 16)));
}

inline Words shift_left(Words x, int bits) {
    for (int16x8_t& part : x.part) part = vshlq_s16(part, vdupq_n_s16(int16_t(bits)));
    return x;
}

inline Levels load_levels(const int8_t* levels, int shift) { return Levels{vld1q_s8(levels), shift}; }

inline void read_4_bits(const uint8_t* x, Levels levels, Words* out) {
    const uint8x16_t first = vld1q_u8(x), second = vld1q_u8(x + 16), low = vdupq_n_u8(15);
    const auto level = [&](uint8x16_t index) { return vqtbl1q_s8(levels.bytes, index); };
    out[0] = widen_bytes(level(vandq_u8(first, low)), level(vandq_u8(second, low)));
    out[1] = widen_bytes(level(vshrq_n_u8(first, 4)), level(vshrq_n_u8(second, 4)));
    if (levels.shift)
        for (int n = 0; n < 2; n++) out[n] = shift_left(out[n], levels.shift);
}

inline Words multiply_fraction(Words x, const uint32_t* factor) {
    for (int16x8_t& part : x.part) part = vqrdmulhq_n_s16(part, int16_t(*factor));
    return x;
}

inline void prefetch(const void* x) { __builtin_prefetch(x); }
