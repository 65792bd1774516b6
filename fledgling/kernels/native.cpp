// Products of a few rows with packed weights, and with them a whole decoding step, for AVX-512 with bf16.
//
// One row reads every weight once, so the weights must be read at the speed of memory, and everything else must take no
// time. A step is one call and one parallel region: each thread computes a range of every matrix's rows, and a barrier
// separates products that need each other's results. However the weights are stored (bf16, or 8 or 4 bits with a scale
// for each group), they become bf16 in a register, exactly, and are multiplied by bf16 activations into fp32; the residual
// stream, norms, rotation and softmax are fp32.
//
// B rows, C width, F intermediate size, K columns of a matrix, H heads, G key/value heads, D head width. Widths are
// multiples of 32.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

using bf16 = uint16_t;

extern "C" {

struct Matrix {  // (rows, columns), row-major
    const void* values;  // bf16; int8; or 4-bit indices: 32 bytes hold 64 columns, the first 32 in the low halves
    const bf16* scales;  // (rows, columns / group); null for bf16
    const float* bias;   // (rows) or null
    const bf16* levels;  // the values of the 16 indices of 4 bits, twice
    int64_t rows, columns, bits, group;
};

struct Norm {
    const float* weight;  // (C) or null
    const float* bias;    // (C) or null
    int64_t centered;     // 1: the mean is subtracted first
    double eps;
};

struct Layer {
    Norm attention_norm, feed_forward_norm;
    Matrix query, key, value, output, up, gate, down;  // gate.values is null where the feed-forward part has no gate
};

struct Shape {
    int64_t layers, width, heads, kv_heads, head_width, intermediate_size;
    int64_t activation;  // 0 ReLU^2, 1 GELU by tanh, 2 SwiGLU
    int64_t normalize;   // 1: queries and keys are divided by their root mean square
    double eps;          // of that normalization
};

}  // extern "C"

namespace {

inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline __m512 widen16(const bf16* x) {
    __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

inline void narrow16(bf16* to, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}

inline __m512 scale_of(const bf16* scale) {  // one bf16 in all lanes
    const __m512i upper = _mm512_set1_epi32(int(0xFFFF0000));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_set1_epi16(short(*scale)), upper));
}

inline __m512 exp16(__m512 x) {  // relative error below 2e-7; underflows to 0
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, n);
}

// ---- products ----------------------------------------------------------------------------------------------------

template <int BITS>
struct Reader;  // 32 columns of one row at a time, as bf16

template <>
struct Reader<16> {
    static constexpr int STEP = 32;
    static inline void read(const uint8_t* row, int64_t k, __m512i, __m512bh* out) {
        out[0] = (__m512bh)_mm512_loadu_si512(row + 2 * k);
    }
};

template <>
struct Reader<8> {
    static constexpr int STEP = 32;
    static inline void read(const uint8_t* row, int64_t k, __m512i, __m512bh* out) {
        const __m128i* at = reinterpret_cast<const __m128i*>(row + k);
        __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at)));
        __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at + 1)));
        out[0] = _mm512_cvtne2ps_pbh(high, low);
    }
};

template <>
struct Reader<4> {
    static constexpr int STEP = 64;
    static inline void read(const uint8_t* row, int64_t k, __m512i levels, __m512bh* out) {
        __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + k / 2));
        __m512i both = _mm512_cvtepu8_epi16(raw);  // bit 4 does not matter: the levels are stored twice
        out[0] = (__m512bh)_mm512_permutexvar_epi16(both, levels);
        out[1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), levels);
    }
};

inline __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {  // the sum of each of the four, in order
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));  // a, b, c, d in each quarter
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

struct Prefetch {  // what a tile prefetches: for which of its rows (bits), the data so many bytes after it
    int rows;
    int64_t bytes;
};

// out[m][r] = sum over k of w[row + r][k] x[m][k], for R rows of the matrix and M rows of x
template <int BITS, int R, int M>
inline void tile(const Matrix& w, int64_t row, const bf16* x, float* out, int64_t stride, Prefetch prefetch) {
    const int64_t K = w.columns, bytes = K * BITS / 8, groups = BITS == 16 ? 0 : K / w.group;
    const uint8_t* base = static_cast<const uint8_t*>(w.values) + row * bytes;
    const bf16* scales = w.scales + row * groups;
    const int shift = BITS == 16 ? 0 : __builtin_ctzll(w.group);
    const __m512i levels = BITS == 4 ? _mm512_loadu_si512(w.levels) : _mm512_setzero_si512();
    constexpr int STEP = Reader<BITS>::STEP, PARTS = STEP / 32;
    __m512 sum[R][M];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += STEP) {
        __m512bh part[R][PARTS];
        for (int r = 0; r < R; r++) {
            const uint8_t* from = base + r * bytes;
            if (prefetch.rows >> r & 1)
                _mm_prefetch(reinterpret_cast<const char*>(from + k * BITS / 8 + prefetch.bytes), _MM_HINT_T0);
            Reader<BITS>::read(from, k, levels, part[r]);
        }
        for (int p = 0; p < PARTS; p++) {
            const int64_t here = k + 32 * p;
            __m512 scale[R];
            if (BITS != 16)
                for (int r = 0; r < R; r++) scale[r] = scale_of(scales + r * groups + (here >> shift));
            for (int m = 0; m < M; m++) {
                const __m512bh v = (__m512bh)_mm512_loadu_si512(x + m * K + here);
                for (int r = 0; r < R; r++) {
                    if (BITS == 16)
                        sum[r][m] = _mm512_dpbf16_ps(sum[r][m], part[r][p], v);
                    else
                        sum[r][m] = _mm512_fmadd_ps(
                            _mm512_dpbf16_ps(_mm512_setzero_ps(), part[r][p], v), scale[r], sum[r][m]);
                }
            }
        }
    }
    for (int m = 0; m < M; m++) {
        if constexpr (R == 4) {
            __m128 four = sums(sum[0][m], sum[1][m], sum[2][m], sum[3][m]);
            if (w.bias) four = _mm_add_ps(four, _mm_loadu_ps(w.bias + row));
            _mm_storeu_ps(out + m * stride + row, four);
        } else {
            for (int r = 0; r < R; r++)
                out[m * stride + row + r] = _mm512_reduce_add_ps(sum[r][m]) + (w.bias ? w.bias[row + r] : 0.0f);
        }
    }
}

template <int BITS, int R>
inline void rows_of(const Matrix& w, int64_t row, const bf16* x, int64_t B, float* out, int64_t stride) {
    int64_t m = 0, tiles = 0;
    const auto next = [&](auto count) {
        // The next rows are prefetched while these are multiplied: all with the first tile, but one with each tile where x
        // alone fills the L1 cache. With one row of x the speed is that of memory, and only the distance matters.
        Prefetch prefetch{tiles == 0 ? ~0 : 0, R * w.columns * BITS / 8};
        if (B == 1) prefetch.bytes = 2048;
        if (B > 16) prefetch.rows = 1 << tiles;
        tile<BITS, R, decltype(count)::value>(w, row, x + m * w.columns, out + m * stride, stride, prefetch);
        m += count;
        tiles++;
    };
    while (B - m >= 6 && B - m != 8) next(std::integral_constant<int, 6>());
    while (B - m >= 4) next(std::integral_constant<int, 4>());
    if (B - m >= 2) next(std::integral_constant<int, 2>());
    if (m < B) next(std::integral_constant<int, 1>());
}

template <int BITS>
void widen_rows(const Matrix& w, int64_t row, int64_t count, bf16* out) {  // to bf16, scales applied
    constexpr int STEP = Reader<BITS>::STEP;
    const int64_t K = w.columns, groups = K / w.group;
    const __m512i levels = BITS == 4 ? _mm512_loadu_si512(w.levels) : _mm512_setzero_si512();
    for (int64_t r = row; r < row + count; r++)
        for (int64_t k = 0; k < K; k += STEP) {
            __m512bh part[STEP / 32];
            Reader<BITS>::read(static_cast<const uint8_t*>(w.values) + r * K * BITS / 8, k, levels, part);
            for (int p = 0; p < STEP / 32; p++) {
                bf16 raw[32];
                _mm512_storeu_si512(raw, (__m512i)part[p]);
                const __m512 scale = scale_of(w.scales + r * groups + (k + 32 * p) / w.group);
                for (int half = 0; half < 32; half += 16)
                    narrow16(out + (r - row) * K + k + 32 * p + half, _mm512_mul_ps(widen16(raw + half), scale));
            }
        }
}

template <int BITS>
void multiply_rows(const Matrix& w, const bf16* x, int64_t B, float* out, int64_t stride, int64_t low, int64_t high) {
    int64_t row = low;
    if (BITS == 16 || B == 1)
        for (; row + 4 <= high; row += 4) rows_of<BITS, 4>(w, row, x, B, out, stride);
    if constexpr (BITS != 16)
        if (B > 8) {  // four rows, widened once, stay in the L1 cache for all of x
            std::vector<bf16> four(4 * w.columns);
            Matrix wide{four.data(), nullptr, nullptr, nullptr, 4, w.columns, 16, 0};
            for (; row + 4 <= high; row += 4) {
                widen_rows<BITS>(w, row, 4, four.data());
                wide.bias = w.bias ? w.bias + row : nullptr;
                rows_of<16, 4>(wide, 0, x, B, out + row, stride);
            }
        }
    for (; row + 2 <= high; row += 2) rows_of<BITS, 2>(w, row, x, B, out, stride);
    for (; row < high; row++) rows_of<BITS, 1>(w, row, x, B, out, stride);
}

struct Share {  // the part of one thread of the team
    int64_t thread, threads;
    int64_t low(int64_t count, int64_t unit = 1) const { return std::min(count, (count / unit) * thread / threads * unit); }
    int64_t high(int64_t count, int64_t unit = 1) const {
        return thread + 1 == threads ? count : (count / unit) * (thread + 1) / threads * unit;
    }
};

void multiply(const Matrix& w, const bf16* x, int64_t B, float* out, int64_t stride, Share share) {
    const int64_t low = share.low(w.rows, 4), high = share.high(w.rows, 4);
    if (w.bits == 16) multiply_rows<16>(w, x, B, out, stride, low, high);
    if (w.bits == 8) multiply_rows<8>(w, x, B, out, stride, low, high);
    if (w.bits == 4) multiply_rows<4>(w, x, B, out, stride, low, high);
}

// ---- operations between the products -----------------------------------------------------------------------------

void normalize(const Norm& norm, const float* x, int64_t C, bf16* out) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    if (norm.centered)
        for (int64_t c = 0; c < C; c += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + c));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / C);
    for (int64_t c = 0; c < C; c += 16) {
        const __m512 v = _mm512_sub_ps(_mm512_loadu_ps(x + c), mean);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / C + float(norm.eps)));
    for (int64_t c = 0; c < C; c += 16) {
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + c), mean), factor);
        if (norm.weight) v = _mm512_mul_ps(v, _mm512_loadu_ps(norm.weight + c));
        if (norm.bias) v = _mm512_add_ps(v, _mm512_loadu_ps(norm.bias + c));
        narrow16(out + c, v);
    }
}

// Rotates a head's two halves by its position, then divides by its root mean square; to bf16.
void rotate(const Shape& s, const float* x, const float* cosine, const float* sine, bf16* out) {
    const int64_t D = s.head_width, half = D / 2;
    float rotated[512];
    for (int64_t d = 0; d < half; d++) {
        const float c = cosine ? cosine[d] : 1.0f, n = sine ? sine[d] : 0.0f;
        rotated[d] = x[d] * c + x[d + half] * n;
        rotated[d + half] = x[d + half] * c - x[d] * n;
    }
    if (s.normalize) return normalize(Norm{nullptr, nullptr, 0, s.eps}, rotated, D, out);
    for (int64_t d = 0; d < D; d += 16) narrow16(out + d, _mm512_loadu_ps(rotated + d));
}

inline __m512 products(const bf16* a, const bf16* b, int64_t D) {  // 16 partial sums of the inner product
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < D; d += 32)
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + d), (__m512bh)_mm512_loadu_si512(b + d));
    return sum;
}

struct Cached {  // keys or values of one row and head: token t in block table[t / block], at t % block
    const bf16* base;       // of the head in block 0
    const int64_t* table;   // the row's blocks
    int64_t block, stride;  // tokens of a block; values from one block to the next
    const bf16* from(int64_t token, int64_t D) const {
        return base + table[token / block] * stride + token % block * D;
    }
};

// out[d .. d + 16 N] = factor * sum over tokens of weights[token] * value[d ...]
template <int N>
inline void mix(const Cached& values, const float* weights, int64_t length, int64_t D, int64_t d, __m512 factor, bf16* out) {
    __m512 sum[N];
    for (int n = 0; n < N; n++) sum[n] = _mm512_setzero_ps();
    for (int64_t start = 0; start < length; start += values.block) {
        const bf16* v = values.from(start, D) + d;
        for (int64_t s = start; s < std::min(length, start + values.block); s++, v += D) {
            const __m512 w = _mm512_set1_ps(weights[s]);
            for (int n = 0; n < N; n++) sum[n] = _mm512_fmadd_ps(w, widen16(v + 16 * n), sum[n]);
        }
    }
    for (int n = 0; n < N; n++) narrow16(out + d + 16 * n, _mm512_mul_ps(sum[n], factor));
}

// Attention of one query over keys and values of `length` tokens; weights: scratch of length + 16. Keys are read four at
// a time, also after the last one: the size of a block is a multiple of four.
void attend(const bf16* q, const Cached& keys, const Cached& values, int64_t length, int64_t D, float* weights,
            bf16* out) {
    for (int64_t start = 0; start < length; start += keys.block) {
        const bf16* k = keys.from(start, D);
        for (int64_t s = start; s < std::min(length, start + keys.block); s += 4, k += 4 * D)
            _mm_storeu_ps(weights + s, sums(products(q, k, D), products(q, k + D, D), products(q, k + 2 * D, D),
                                            products(q, k + 3 * D, D)));
    }
    for (int64_t s = length; s < (length + 15) / 16 * 16; s++) weights[s] = -INFINITY;
    __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int64_t s = 0; s < length; s += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(weights + s));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(float(D)));
    for (int64_t s = 0; s < length; s += 16) {
        const __m512 w = exp16(_mm512_mul_ps(scale, _mm512_sub_ps(_mm512_loadu_ps(weights + s), most)));
        total = _mm512_add_ps(total, w);
        _mm512_storeu_ps(weights + s, w);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    int64_t d = 0;
    for (; d + 128 <= D; d += 128) mix<8>(values, weights, length, D, d, factor, out);
    for (; d < D; d += 32) mix<2>(values, weights, length, D, d, factor, out);
}

inline __m512 activate(int64_t kind, __m512 x, __m512 up) {
    const __m512 one = _mm512_set1_ps(1.0f);
    if (kind == 0) {
        const __m512 kept = _mm512_max_ps(x, _mm512_setzero_ps());
        return _mm512_mul_ps(kept, kept);
    }
    __m512 t = x;  // GELU and SiLU are x times a logistic function: tanh(z) = 2 / (1 + exp(-2 z)) - 1
    if (kind == 1) {
        t = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), x), _mm512_set1_ps(0.044715f), x);
        t = _mm512_mul_ps(t, _mm512_set1_ps(2 * 0.7978845608f));
    }
    const __m512 bounded = _mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), t), _mm512_set1_ps(88.0f));
    const __m512 y = _mm512_div_ps(x, _mm512_add_ps(one, exp16(bounded)));
    return kind == 2 ? _mm512_mul_ps(y, up) : y;
}

}  // namespace

extern "C" {

// out (B, rows) fp32 = x (B, columns) bf16 times w^T, plus the bias.
void fledgling_linear(const Matrix* w, const bf16* x, int64_t B, float* out, int64_t threads) {
#pragma omp parallel num_threads(threads)
    multiply(*w, x, B, out, w->rows, Share{omp_get_thread_num(), omp_get_num_threads()});
}

// out (rows, columns) bf16 = the dequantized matrix.
void fledgling_widen(const Matrix* w, bf16* out, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        const Share share{omp_get_thread_num(), omp_get_num_threads()};
        const int64_t low = share.low(w->rows), count = share.high(w->rows) - low;
        if (w->bits == 8) widen_rows<8>(*w, low, count, out + low * w->columns);
        if (w->bits == 4) widen_rows<4>(*w, low, count, out + low * w->columns);
    }
}

// Runs all blocks for B new tokens, of one row or of several; x (B, C) fp32 is changed in place.
// keys, values: of each layer, bf16 (blocks, G, block, D); tables (B, most): the blocks of each token's row, in order;
// positions (B): the number of tokens before it; cosine, sine (B, D / 2), or null without RoPE.
void fledgling_step(const Shape* shape, const Layer* layers, float* x, int64_t B, bf16* const* keys,
                    bf16* const* values, const int64_t* tables, int64_t most, int64_t block, const int64_t* positions,
                    const float* cosine, const float* sine, int64_t threads) {
    const Shape& s = *shape;
    const int64_t C = s.width, D = s.head_width, H = s.heads, G = s.kv_heads, F = s.intermediate_size, E = C + 2 * G * D;
    const int64_t longest = 32 + *std::max_element(positions, positions + B);
    std::vector<bf16> read(B * std::max(C, F)), attended(B * C), rotated(H * D * threads);
    std::vector<float> wide(B * std::max(E, 2 * F)), weights(longest * threads);
#pragma omp parallel num_threads(threads)
    {
        const Share share{omp_get_thread_num(), omp_get_num_threads()};
        float* scratch = weights.data() + longest * share.thread;
        bf16* q = rotated.data() + H * D * share.thread;
        const auto add = [&](int64_t b, int64_t low, int64_t high) {  // adds a product to the residual stream
            for (int64_t c = low; c < high; c++) x[b * C + c] += wide[b * C + c];
        };
        for (int64_t l = 0; l < s.layers; l++) {
            const Layer& layer = layers[l];
            for (int64_t b = share.thread; b < B; b += share.threads)
                normalize(layer.attention_norm, x + b * C, C, read.data() + b * C);
#pragma omp barrier
            multiply(layer.query, read.data(), B, wide.data(), E, share);
            multiply(layer.key, read.data(), B, wide.data() + C, E, share);
            multiply(layer.value, read.data(), B, wide.data() + C + G * D, E, share);
#pragma omp barrier
            const auto of = [&](bf16* const* pool, int64_t b, int64_t g) {
                return Cached{pool[l] + g * block * D, tables + b * most, block, G * block * D};
            };
            const auto angle = [&](const float* angles, int64_t b) { return angles ? angles + b * D / 2 : nullptr; };
            for (int64_t job = share.low(B * G); job < share.high(B * G); job++) {
                const int64_t b = job / G, g = job % G, at = positions[b];
                const float* row = wide.data() + b * E + C + g * D;
                bf16* k = const_cast<bf16*>(of(keys, b, g).from(at, D));
                bf16* v = const_cast<bf16*>(of(values, b, g).from(at, D));
                rotate(s, row, angle(cosine, b), angle(sine, b), k);
                for (int64_t d = 0; d < D; d += 16) narrow16(v + d, _mm512_loadu_ps(row + G * D + d));
            }
#pragma omp barrier
            for (int64_t job = share.low(B * G); job < share.high(B * G); job++) {
                const int64_t b = job / G, g = job % G;
                const Cached k = of(keys, b, g), v = of(values, b, g);
                for (int64_t h = g * (H / G); h < (g + 1) * (H / G); h++) {
                    rotate(s, wide.data() + b * E + h * D, angle(cosine, b), angle(sine, b), q);
                    attend(q, k, v, positions[b] + 1, D, scratch, attended.data() + b * C + h * D);
                }
            }
#pragma omp barrier
            multiply(layer.output, attended.data(), B, wide.data(), C, share);
            for (int64_t b = 0; b < B; b++) add(b, share.low(C, 4), share.high(C, 4));
#pragma omp barrier
            for (int64_t b = share.thread; b < B; b += share.threads)
                normalize(layer.feed_forward_norm, x + b * C, C, read.data() + b * C);
#pragma omp barrier
            multiply(layer.up, read.data(), B, wide.data(), 2 * F, share);
            if (layer.gate.values) multiply(layer.gate, read.data(), B, wide.data() + F, 2 * F, share);
#pragma omp barrier
            for (int64_t c = share.low(B * F, 16); c < share.high(B * F, 16); c += 16) {
                const float* up = wide.data() + c / F * 2 * F + c % F;
                const bool gated = layer.gate.values != nullptr;
                const __m512 u = _mm512_loadu_ps(up), g = gated ? _mm512_loadu_ps(up + F) : u;
                narrow16(read.data() + c, activate(s.activation, g, u));
            }
#pragma omp barrier
            multiply(layer.down, read.data(), B, wide.data(), C, share);
            for (int64_t b = 0; b < B; b++) add(b, share.low(C, 4), share.high(C, 4));
#pragma omp barrier
        }
    }
}

}  // extern "C"
