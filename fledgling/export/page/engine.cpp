// Arithmetic of the chat page in one file, for WebAssembly with SIMD: products with packed weights, norms, rotation,
// attention, activations. network.js has the order in which they run and all memory; no function here allocates.
//
// All arithmetic is fp32. Weights are those of kernels/format.py: a level of 8 or 4 bits is a whole number, so level times
// input is summed over a group, and the sum multiplied by the group's scale. fledgling/export/wasm.py
// compiles this file.
//
// T tokens, K columns of a matrix, H heads, G key/value heads, D head width, d values of it rotated. Addresses are bytes
// of the memory; 0 is "none".

#include <wasm_simd128.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using bf16 = unsigned short;
using byte = unsigned char;

// The levels of 4 bits: LEVELS_4BIT of kernels/format.py.
const v128_t LEVELS = wasm_i8x16_const(-127, -103, -83, -66, -51, -37, -24, -11, 2, 15, 28, 41, 56, 72, 90, 113);

inline float widen(bf16 x) { return __builtin_bit_cast(float, unsigned(x) << 16); }

inline float sum(v128_t x) {
    return (wasm_f32x4_extract_lane(x, 0) + wasm_f32x4_extract_lane(x, 1)) +
           (wasm_f32x4_extract_lane(x, 2) + wasm_f32x4_extract_lane(x, 3));
}

inline v128_t multiply_add(v128_t a, v128_t b, v128_t c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }

const float COEFFICIENTS[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};

inline v128_t exp4(v128_t x) {  // relative error below 3e-7; 0 below -87
    const v128_t n = wasm_f32x4_nearest(wasm_f32x4_mul(x, wasm_f32x4_splat(1.44269504f)));
    v128_t r = multiply_add(n, wasm_f32x4_splat(-0.693359375f), x);
    r = multiply_add(n, wasm_f32x4_splat(2.12194440e-4f), r);
    v128_t p = wasm_f32x4_splat(1.0f / 5040);
    for (float c : COEFFICIENTS) p = multiply_add(p, r, wasm_f32x4_splat(c));
    const v128_t power = wasm_i32x4_shl(wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127)), 23);
    return wasm_v128_and(wasm_f32x4_mul(p, power), wasm_f32x4_gt(x, wasm_f32x4_splat(-87.0f)));
}

inline float exp1(float x) { return wasm_f32x4_extract_lane(exp4(wasm_f32x4_splat(x)), 0); }

// ---- products ----------------------------------------------------------------------------------------------------

struct Matrix {
    const byte* values;   // int8; or 4 bits: 32 bytes hold 64 columns, the first 32 in the low halves; or bf16
    const bf16* scales;   // (rows, K / group)
    const float* bias;    // (rows) or none
    int rows, columns, group;
};

// 16 columns of a row, as four times four fp32 levels.
inline void widen_levels(v128_t levels, v128_t* out) {
    const v128_t low = wasm_i16x8_extend_low_i8x16(levels), high = wasm_i16x8_extend_high_i8x16(levels);
    out[0] = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(low));
    out[1] = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(low));
    out[2] = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(high));
    out[3] = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(high));
}

template <int BITS>
inline void read16(const byte* row, int k, v128_t* out) {
    if constexpr (BITS == 8) widen_levels(wasm_v128_load(row + k), out);
    if constexpr (BITS == 4) {
        const v128_t both = wasm_v128_load(row + k / 64 * 32 + k % 32);
        const v128_t index = k & 32 ? wasm_u8x16_shr(both, 4) : wasm_v128_and(both, wasm_i8x16_splat(15));
        widen_levels(wasm_i8x16_swizzle(LEVELS, index), out);
    }
    if constexpr (BITS == 16)
        for (int half = 0; half < 2; half++) {
            const v128_t raw = wasm_v128_load(row + 2 * k + 16 * half);
            out[2 * half] = wasm_i32x4_shl(wasm_u32x4_extend_low_u16x8(raw), 16);
            out[2 * half + 1] = wasm_i32x4_shl(wasm_u32x4_extend_high_u16x8(raw), 16);
        }
}

// out[m][row + r] for R rows of the matrix and M tokens.
template <int BITS, int R, int M>
inline void tile(const Matrix& w, int row, const float* x, float* out) {
    const int K = w.columns, bytes = K / 8 * BITS, groups = K / w.group;
    v128_t total[R][M] = {};
    for (int group = 0; group < groups; group++) {
        v128_t part[R][M] = {};
        for (int k = group * w.group; k < (group + 1) * w.group; k += 16)
            for (int r = 0; r < R; r++) {
                v128_t four[4];
                read16<BITS>(w.values + (row + r) * bytes, k, four);
                for (int i = 0; i < 4; i++)
                    for (int m = 0; m < M; m++)
                        part[r][m] = multiply_add(four[i], wasm_v128_load(x + m * K + k + 4 * i), part[r][m]);
            }
        for (int r = 0; r < R; r++) {
            const v128_t scale = wasm_f32x4_splat(BITS == 16 ? 1.0f : widen(w.scales[(row + r) * groups + group]));
            for (int m = 0; m < M; m++) total[r][m] = multiply_add(part[r][m], scale, total[r][m]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++)
            out[m * w.rows + row + r] = sum(total[r][m]) + (w.bias ? w.bias[row + r] : 0.0f);
}

template <int BITS>
void multiply_rows(const Matrix& w, const float* x, int T, float* out) {
    int m = 0;
    for (; m + 4 <= T; m += 4)
        for (int row = 0; row < w.rows; row++) tile<BITS, 1, 4>(w, row, x + m * w.columns, out + m * w.rows);
    for (; m < T; m++) {
        int row = 0;
        for (; row + 2 <= w.rows; row += 2) tile<BITS, 2, 1>(w, row, x + m * w.columns, out + m * w.rows);
        for (; row < w.rows; row++) tile<BITS, 1, 1>(w, row, x + m * w.columns, out + m * w.rows);
    }
}

inline float erf(float value) {  // 2 / sqrt(pi) exp(-x^2) times a sum of positive terms; absolute error below 1e-7
    const double x = value < 0 ? -value : value;
    double term = x, total = x;
    if (x > 4) return value < 0 ? -1.0f : 1.0f;
    for (int n = 1; n < 80; n++) total += term *= 2 * x * x / (2 * n + 1);
    const float result = float(1.1283791670955126 * total) * exp1(float(-x * x));
    return value < 0 ? -result : result;
}

inline float gelu_tanh(float x) {  // x times a logistic function: tanh(z) = 2 / (1 + exp(-2 z)) - 1
    const float z = 1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exp1(z < -80 ? 80 : z > 80 ? -80 : -z));
}

}  // namespace

// out (T, rows) = x (T, K) W^T + bias. bits: 8, 4, or 16 for bf16, whose "group" is any divisor of K.
EXPORT void multiply(int bits, const byte* values, const bf16* scales, const float* bias, int rows, int columns,
                     int group, const float* x, int T, float* out) {
    const Matrix w{values, scales, bias, rows, columns, group};
    if (bits == 8) multiply_rows<8>(w, x, T, out);
    if (bits == 4) multiply_rows<4>(w, x, T, out);
    if (bits == 16) multiply_rows<16>(w, x, T, out);
}

// out (K) = one row of a matrix.
EXPORT void read_row(int bits, const byte* values, const bf16* scales, int columns, int group, int row, float* out) {
    const byte* from = values + row * (columns / 8 * bits);
    for (int k = 0; k < columns; k += 16) {
        v128_t four[4];
        if (bits == 8) read16<8>(from, k, four);
        if (bits == 4) read16<4>(from, k, four);
        if (bits == 16) read16<16>(from, k, four);
        const float scale = bits == 16 ? 1.0f : widen(scales[row * (columns / group) + k / group]);
        for (int i = 0; i < 4; i++) wasm_v128_store(out + k + 4 * i, wasm_f32x4_mul(four[i], wasm_f32x4_splat(scale)));
    }
}

// out (count) = a x + b y.
EXPORT void mix(const float* x, float a, const float* y, float b, int count, float* out) {
    for (int i = 0; i < count; i++) out[i] = a * x[i] + b * y[i];
}

// out (T, width) = x, less its mean if centered, divided by the root of its mean square, times weight, plus bias.
EXPORT void normalize(const float* x, int T, int width, float eps, int centered, const float* weight,
                      const float* bias, float* out) {
    for (int t = 0; t < T; t++, x += width, out += width) {
        float mean = 0.0f, squares = 0.0f;
        if (centered) {
            for (int c = 0; c < width; c++) mean += x[c];
            mean /= width;
        }
        for (int c = 0; c < width; c++) squares += (x[c] - mean) * (x[c] - mean);
        const float factor = 1.0f / __builtin_sqrtf(squares / width + eps);
        for (int c = 0; c < width; c++) {
            const float value = (x[c] - mean) * factor;
            out[c] = (weight ? weight[c] * value : value) + (bias ? bias[c] : 0.0f);
        }
    }
}

// Rotates the two halves of the first d values of each head of x (T, H, D); cosine, sine (context, d / 2).
EXPORT void rotate(float* x, int T, int heads, int D, int d, const float* cosine, const float* sine, int position) {
    const int half = d / 2;
    for (int t = 0; t < T; t++)
        for (int h = 0; h < heads; h++, x += D)
            for (int i = 0; i < half; i++) {
                const float c = cosine[(position + t) * half + i], s = sine[(position + t) * half + i];
                const float first = x[i], second = x[i + half];
                x[i] = first * c + second * s;
                x[i + half] = second * c - first * s;
            }
}

// Writes the keys or values x (T, G, D) of the tokens at `position` to the cache (G, context, D).
EXPORT void store(const float* x, int T, int groups, int D, int context, int position, float* cache) {
    for (int t = 0; t < T; t++)
        for (int g = 0; g < groups; g++)
            for (int i = 0; i < D; i++) cache[(g * context + position + t) * D + i] = x[(t * groups + g) * D + i];
}

// out (H, D) = attention of one token's q (H, D) over the cached tokens first ... last; scores: scratch of context + 4.
EXPORT void attend(const float* q, const float* keys, const float* values, int heads, int groups, int D, int context,
                   int first, int last, float* scores, float* out) {
    const float factor = 1.0f / __builtin_sqrtf(float(D));
    const int count = last - first + 1;
    for (int h = 0; h < heads; h++, q += D, out += D) {
        const int at = (h / (heads / groups) * context + first) * D;
        float most = -__builtin_inff();
        for (int s = 0; s < count; s++) {
            v128_t product = wasm_f32x4_splat(0.0f);
            for (int i = 0; i < D; i += 4)
                product = multiply_add(wasm_v128_load(q + i), wasm_v128_load(keys + at + s * D + i), product);
            scores[s] = sum(product) * factor;
            most = scores[s] > most ? scores[s] : most;
        }
        for (int s = count; s % 4; s++) scores[s] = -__builtin_inff();
        v128_t total = wasm_f32x4_splat(0.0f);
        for (int s = 0; s < count; s += 4) {
            const v128_t weight = exp4(wasm_f32x4_sub(wasm_v128_load(scores + s), wasm_f32x4_splat(most)));
            wasm_v128_store(scores + s, weight);
            total = wasm_f32x4_add(total, weight);
        }
        const v128_t inverse = wasm_f32x4_splat(1.0f / sum(total));
        for (int i = 0; i < D; i += 4) {
            v128_t mixed = wasm_f32x4_splat(0.0f);
            for (int s = 0; s < count; s++)
                mixed = multiply_add(wasm_f32x4_splat(scores[s]), wasm_v128_load(values + at + s * D + i), mixed);
            wasm_v128_store(out + i, wasm_f32x4_mul(mixed, inverse));
        }
    }
}

// x (count) = its activation: 0 ReLU^2, 1 GELU by tanh, 2 GELU by erf, 3 SiLU; times up (count) if there is one.
EXPORT void activate(int kind, float* x, const float* up, int count) {
    for (int i = 0; i < count; i++) {
        float y = x[i];
        if (kind == 0) y = y > 0 ? y * y : 0.0f;
        if (kind == 1) y = gelu_tanh(y);
        if (kind == 2) y = 0.5f * y * (1.0f + erf(y * 0.70710678f));
        if (kind == 3) y = y / (1.0f + exp1(y < -80 ? 80 : -y));
        x[i] = up ? y * up[i] : y;
    }
}
