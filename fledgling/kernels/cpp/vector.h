// The vector instructions that the kernels need, in the form of the instruction set they are compiled for.
//
//   Floats, Ints   LANES values of 32 bits
//   Words          32 columns of 16 bits: bf16 or integers
//   Levels         the values of the 16 indices of 4 bits, as a lookup
//
// Every set defines the same functions; vector_avx512.h lists them first and says what each computes.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

using bf16 = uint16_t;

#if defined(__AVX512BW__)
#include "vector_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "vector_avx2.h"
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include "vector_neon.h"
#else
#error "no vector instructions that the kernels know"
#endif

inline float widen_one(bf16 x) {
    const uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline Floats exponential(Floats x) {  // relative error below 2e-7; underflows to 0, or to 1e-38 without scalef
    x = max(set1(-104.0f), x);  // in this order, which keeps a NaN
    const Floats n = round(mul(x, set1(1.44269504f)));
    Floats r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    Floats p = set1(1.0f / 720);
    for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, set1(c));
    return multiply_by_power(p, n);
}
