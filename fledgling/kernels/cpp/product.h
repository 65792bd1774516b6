// Products of a few rows with packed weights.
//
// bf16 weights are multiplied by bf16 activations into fp32. Weights of 8 and 4 bits have whole levels, so they are
// multiplied as integers: a row of activations becomes whole numbers and one scale, with an error of at most 2^-15 of
// its largest value (bf16 itself has 2^-9 of each value); a row with a value that is not finite gives NaN. In one or
// two rows with weights of 8 bits the sum of each group becomes fp32 and is scaled. Otherwise the weights of a row
// become integers with one scale too, with an error of at most 2^-12 of the row's largest weight, so that sums become
// fp32 once in CHUNK columns.
//
// B rows of x, K columns. Widths are multiples of 32.

#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "vector.h"

extern "C" {

struct Matrix {  // (rows, columns), row-major
    const void* values;    // bf16; int8; or 4-bit indices: 32 bytes hold 64 columns, the first 32 in the low halves
    const bf16* scales;    // (rows, columns / group); null for bf16
    const float* bias;     // (rows) or null
    const int8_t* levels;  // the values of the 16 indices of 4 bits
    const int16_t* fractions;  // (rows, columns / group): each scale as a part of the row's largest, times 32767
    const float* row_scales;   // (rows): of a level times 2^WIDE_BITS times a fraction of 2^15
    int64_t rows, columns, bits, group;
};

}  // extern "C"

constexpr int64_t MAX_GROUPS = 1024;         // of a row
constexpr int64_t MAX_FEW_ROWS = 2;          // of x, with which no integers of the matrix are kept
constexpr int64_t MAX_STREAMED_ROWS = 16;    // of x, with which the speed of a bf16 product is that of memory
constexpr int64_t MAX_SHORT_ROW = 1024;      // columns of the matrix: four such rows leave most of the L1 cache free
constexpr int64_t READ_AHEAD = 2048;         // bytes of each row: bf16 with one row of x, few bits with one or two
constexpr int64_t SCALES_AHEAD = 256;        // scales or fractions of each row
constexpr int64_t CHUNK = 32 * LANES;        // columns: 32 products a lane
constexpr int WIDE_BITS = 5;                 // a level times 2^5 is at most 4064
constexpr float LARGEST_INTEGER = 16383.0f;  // of x: 32 x 4064 x 16383 < 2^31

struct Rows {  // rows of x, and for weights of few bits the same as integers
    const bf16* values;       // (B, K)
    const int16_t* integers;  // (B, K)
    const float* scales;      // (B)
};

struct Share {  // the part of one thread of the team
    int64_t thread, threads;
    int64_t low(int64_t count, int64_t unit = 1) const { return std::min(count, (count / unit) * thread / threads * unit); }
    int64_t high(int64_t count, int64_t unit = 1) const {
        return thread + 1 == threads ? count : (count / unit) * (thread + 1) / threads * unit;
    }
};

// The R rows of the matrix that are multiplied together. Where the speed is that of memory they are far from each
// other, and the row after each is read next: R streams. A processor takes four adjacent rows for one stream with leaps,
// and reads them at half of the speed. With more than MAX_STREAMED_ROWS rows of x adjacent rows are 3 to 10 % faster.
struct Place {
    int64_t row, step;
    int64_t at(int64_t r) const { return row + r * step; }
    int64_t leap(int64_t R) const { return step == 1 ? R : 1; }  // rows from at(r) to at(r) of the next place
};

// Calls next(place, R) for places of R = 4 rows, and of one at the end, that cover rows `low` to `high` - 1.
template <class Next>
inline void for_places(int64_t low, int64_t high, bool far, const Next& next) {
    const int64_t count = (high - low) / 4;
    for (int64_t n = 0; n < count; n++)
        next(far ? Place{low + n, count} : Place{low + 4 * n, 1}, std::integral_constant<int, 4>());
    for (int64_t row = low + 4 * count; row < high; row++) next(Place{row, 1}, std::integral_constant<int, 1>());
}

// Makes integers of a row of x; returns their scale. It is NaN where a value is infinite or NaN, so that all products of
// the row are: no integer says so, and the largest value does not, as max drops a NaN.
inline float encode(const bf16* x, int64_t K, int16_t* to) {
    Floats most = zero(), doubt = zero();  // the latter stays 0 while values are finite, and becomes NaN
    for (int64_t k = 0; k < K; k += LANES) {
        const Floats v = widen(x + k);
        most = max(most, absolute(v));
        doubt = fma(v, zero(), doubt);
    }
    const float largest = largest_of(most);
    const Floats factor = set1(largest > 0 ? LARGEST_INTEGER / largest : 0.0f);
    for (int64_t k = 0; k < K; k += LANES) to_int16(to + k, mul(widen(x + k), factor));
    return largest / LARGEST_INTEGER + sum_of(doubt);
}

// to[n] = change(from[n]). A row has few groups, often no multiple of a vector's values: four at a time are one vector.
template <class From, class To, class Change>
inline void convert(const From* from, int64_t count, To* to, const Change& change) {
    int64_t n = 0;
    for (; n + 4 <= count; n += 4)
        for (int64_t place = n; place < n + 4; place++) to[place] = change(from[place]);
    for (; n < count; n++) to[n] = change(from[n]);
}

// Calls next(m, M) for tiles of M rows, at most MOST, that cover B rows.
template <int MOST, class Next>
inline void for_tiles(int64_t B, const Next& next) {
    int64_t m = 0;
    const auto take = [&](auto count) {
        next(m, count);
        m += count;
    };
    if constexpr (MOST >= 6)
        while (B - m >= 6 && B - m != 8) take(std::integral_constant<int, 6>());
    if constexpr (MOST >= 4)
        while (B - m >= 4) take(std::integral_constant<int, 4>());
    while (B - m >= 2) take(std::integral_constant<int, 2>());
    if (m < B) take(std::integral_constant<int, 1>());
}

// Writes the sums of R rows of the matrix with one row of x; out (rows of the matrix).
template <int R, class Sum>
inline void finish(const Sum& sum, float scale, const float* bias, Place place, float* out) {
    static_assert(R == 4 || R == 1);
    float sums[R];
    if constexpr (R == 4)
        store_sums(sums, sum(0), sum(1), sum(2), sum(3));
    else
        sums[0] = sum_of(sum(0));
    for (int r = 0; r < R; r++) out[place.at(r)] = sums[r] * scale + (bias ? bias[place.at(r)] : 0.0f);
}

// ---- bf16 --------------------------------------------------------------------------------------------------------

struct Prefetch {  // what a tile prefetches: for which of its rows (bits), the data `bytes` after it
    int rows;
    int64_t bytes;
};

// out[m][place.at(r)] = sum over k of w[place.at(r)][k] x[m][k], for R rows of the matrix and M rows of x
template <int R, int M>
inline void tile_bf16(const Matrix& w, Place place, const bf16* x, float* out, int64_t stride, Prefetch ahead) {
    const int64_t K = w.columns;
    const bf16* base[R];
    for (int r = 0; r < R; r++) base[r] = static_cast<const bf16*>(w.values) + place.at(r) * K;
    Floats sum[R][M];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = zero();
    for (int64_t k = 0; k < K; k += 32) {
        Words part[R];
        for (int r = 0; r < R; r++) {
            if (ahead.rows >> r & 1) prefetch(reinterpret_cast<const char*>(base[r] + k) + ahead.bytes);
            part[r] = load_words(base[r] + k);
        }
        for (int m = 0; m < M; m++) {
            const Words v = load_words(x + m * K + k);
            for (int r = 0; r < R; r++) sum[r][m] = dot_bf16(sum[r][m], part[r], v);
        }
    }
    for (int m = 0; m < M; m++)
        finish<R>([&](int r) { return sum[r][m]; }, 1.0f, w.bias, place, out + m * stride);
}

template <int R>
inline void rows_bf16(const Matrix& w, Place place, const bf16* x, int64_t B, float* out, int64_t stride) {
    int64_t tiles = 0;
    for_tiles<TILE_ROWS>(B, [&](int64_t m, auto count) {
        // The next rows are prefetched while these are multiplied: all with the first tile; half of them with each of
        // two tiles where rows are short, as the first would wait for so many; one with each tile of many rows of x,
        // which fill the L1 cache. With one row of x a fixed distance is enough.
        Prefetch ahead{tiles == 0 ? ~0 : 0, B == 1 ? READ_AHEAD : place.leap(R) * w.columns * 2};
        if (B > MAX_STREAMED_ROWS)
            ahead.rows = tiles < R ? 1 << tiles : 0;
        else if (B > TILE_ROWS && w.columns <= MAX_SHORT_ROW)
            ahead.rows = tiles < 2 ? 3 << 2 * tiles : 0;
        tile_bf16<R, decltype(count)::value>(w, place, x + m * w.columns, out + m * stride, stride, ahead);
        tiles++;
    });
}

// ---- 8 and 4 bits ------------------------------------------------------------------------------------------------

template <int BITS>
struct Reader;  // COLUMNS columns of one row at a time, as levels times 2^shift

template <>
struct Reader<8> {
    static constexpr int COLUMNS = 32;
    Reader(const Matrix&, int shift) : shift(shift) {}
    inline void read(const uint8_t* x, Words* out) const {
        const Words whole = read_8_bits(x);
        out[0] = shift ? shift_left(whole, shift) : whole;
    }
    const int shift;
};

template <>
struct Reader<4> {
    static constexpr int COLUMNS = 64;
    Reader(const Matrix& w, int shift) : levels(load_levels(w.levels, shift)) {}
    inline void read(const uint8_t* x, Words* out) const { read_4_bits(x, levels, out); }
    const Levels levels;
};

// Few rows, 8 bits: the sum of each SPAN columns (32 or 64) becomes fp32 and is scaled. scales: of R rows, fp32.
template <int SPAN, int R, int M>
inline void tile_scaled(const Matrix& w, Place place, const float* scales, const Rows& x, int64_t first, float* out,
                        int64_t stride) {
    constexpr int PARTS = SPAN / 32;
    const int64_t K = w.columns, groups = K / w.group;
    const int shift = __builtin_ctzll(w.group);
    const uint8_t* base[R];
    for (int r = 0; r < R; r++) base[r] = static_cast<const uint8_t*>(w.values) + place.at(r) * K;
    const int16_t* from_x = x.integers + first * K;
    Floats sum[R][M];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = zero();
    for (int64_t k = 0; k < K; k += SPAN) {
        Words v[M][PARTS];
        for (int m = 0; m < M; m++)
            for (int p = 0; p < PARTS; p++) v[m][p] = load_words(from_x + m * K + k + 32 * p);
        for (int r = 0; r < R; r++) {
            const uint8_t* from = base[r] + k;
            prefetch(from + READ_AHEAD);
            Words part[PARTS];
            for (int p = 0; p < PARTS; p++) part[p] = read_8_bits(from + 32 * p);
            const Floats scale = set1(scales[r * groups + (k >> shift)]);
            for (int m = 0; m < M; m++) {
                Ints whole = product_int16(part[0], v[m][0]);
                for (int p = 1; p < PARTS; p++) whole = dot_int16(whole, part[p], v[m][p]);
                sum[r][m] = fma(to_floats(whole), scale, sum[r][m]);
            }
        }
    }
    for (int m = 0; m < M; m++)
        finish<R>([&](int r) { return sum[r][m]; }, x.scales[first + m], w.bias, place, out + m * stride);
}

// The fractions of some rows, each twice in 32 bits: one load fills a vector with it.
struct Pairs {
    uint32_t values[4 * MAX_GROUPS];

    Pairs(const Matrix& w, Place place, int64_t count) {
        const int64_t groups = w.columns / w.group;
        for (int64_t r = 0; r < count; r++) {
            const int16_t* from = w.fractions + place.at(r) * groups;
            uint32_t* to = values + r * groups;
            for (int64_t g = 0; g < groups; g += 32) prefetch(from + g + SCALES_AHEAD);
            convert(from, groups, to, [](int16_t fraction) { return uint16_t(fraction) * 0x10001u; });
        }
    }
};

// Few rows, 4 bits: levels become integers with one scale for the row, and sums become fp32 once in CHUNK columns.
template <int R, int M>
inline void tile_fractions(const Matrix& w, Place place, const Pairs& pairs, const Rows& x, int64_t first,
                           float* out, int64_t stride) {
    const int64_t K = w.columns, groups = K / w.group, bytes = K / 2;
    const int shift = __builtin_ctzll(w.group);
    const uint8_t* base[R];
    for (int r = 0; r < R; r++) base[r] = static_cast<const uint8_t*>(w.values) + place.at(r) * bytes;
    const int16_t* from_x = x.integers + first * K;
    const Reader<4> reader(w, WIDE_BITS);
    Floats sum[R][M];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = zero();
    for (int64_t start = 0; start < K; start += CHUNK) {
        Ints whole[R][M];
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) whole[r][m] = zero_ints();
        for (int64_t k = start; k < std::min(K, start + CHUNK); k += 64) {
            for (int r = 0; r < R; r++) {
                const uint8_t* from = base[r] + k / 2;
                prefetch(from + READ_AHEAD);
                Words part[2];
                reader.read(from, part);
                for (int p = 0; p < 2; p++) {
                    part[p] = multiply_fraction(part[p], pairs.values + r * groups + ((k + 32 * p) >> shift));
                    for (int m = 0; m < M; m++)
                        whole[r][m] = dot_int16(whole[r][m], part[p], load_words(from_x + m * K + k + 32 * p));
                }
            }
        }
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) sum[r][m] = add(sum[r][m], to_floats(whole[r][m]));
    }
    for (int m = 0; m < M; m++) {
        const float scale = x.scales[first + m];
        finish<R>([&](int r) { return mul(sum[r][m], set1(w.row_scales[place.at(r)])); }, scale, w.bias, place,
                  out + m * stride);
    }
}

template <int BITS, int R>
inline void rows_few(const Matrix& w, Place place, const Rows& x, int64_t B, float* out, int64_t stride) {
    if constexpr (BITS == 4) {
        const Pairs pairs(w, place, R);
        for_tiles<2>(B, [&](int64_t m, auto count) {
            tile_fractions<R, decltype(count)::value>(w, place, pairs, x, m, out + m * stride, stride);
        });
    } else {
        const int64_t groups = w.columns / w.group;
        float scales[R * MAX_GROUPS];
        for (int64_t r = 0; r < R; r++) {
            const bf16* from = w.scales + place.at(r) * groups;
            for (int64_t g = 0; g < groups; g += 32) prefetch(from + g + SCALES_AHEAD);
            convert(from, groups, scales + r * groups, widen_one);
        }
        for_tiles<2>(B, [&](int64_t m, auto count) {
            constexpr int M = decltype(count)::value;
            if (w.group == 32)
                tile_scaled<32, R, M>(w, place, scales, x, m, out + m * stride, stride);
            else
                tile_scaled<64, R, M>(w, place, scales, x, m, out + m * stride, stride);
        });
    }
}

// Many rows: R rows of the matrix are made integers once, 32 columns of each in turn, and stay in the L1 cache for all of x.
template <int R, int M>
inline void tile_wide(const Matrix& w, Place place, const int16_t* wide, const Rows& x, int64_t first, float* out,
                      int64_t stride) {
    const int64_t K = w.columns;
    const int16_t* from_x = x.integers + first * K;
    alignas(64) float memory[R * M * LANES] = {};
    float* sums = memory;
    asm volatile("" : "+r"(sums) : : "memory");  // the registers are for the sums of integers
    for (int64_t start = 0; start < K; start += CHUNK) {
        Ints whole[R][M];
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) whole[r][m] = zero_ints();
        const int64_t stop = std::min(K, start + CHUNK);
        for (int64_t k = start; k < stop; k += 32) {
            Words part[R];
            for (int r = 0; r < R; r++) part[r] = load_words(wide + k * R + 32 * r);
            for (int m = 0; m < M; m++) {
                const Words v = load_words(from_x + m * K + k);
                for (int r = 0; r < R; r++) whole[r][m] = dot_int16(whole[r][m], part[r], v);
            }
        }
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) {
                float* sum = sums + (r * M + m) * LANES;
                store(sum, add(load(sum), to_floats(whole[r][m])));
            }
    }
    for (int m = 0; m < M; m++)
        finish<R>([&](int r) { return mul(load(sums + (r * M + m) * LANES), set1(w.row_scales[place.at(r)])); },
                  x.scales[first + m], w.bias, place, out + m * stride);
}

template <int BITS, int R>
inline void rows_wide(const Matrix& w, Place place, const Rows& x, int64_t B, float* out, int64_t stride, int16_t* wide) {
    const int64_t K = w.columns, groups = K / w.group, bytes = K * BITS / 8;
    const int shift = __builtin_ctzll(w.group);
    const Pairs pairs(w, place, R);
    const Reader<BITS> reader(w, WIDE_BITS);
    for (int64_t r = 0; r < R; r++) {
        const uint8_t* from = static_cast<const uint8_t*>(w.values) + place.at(r) * bytes;
        for (int64_t k = 0; k < K; k += reader.COLUMNS) {
            prefetch(from + R * bytes + k * BITS / 8);
            Words part[reader.COLUMNS / 32];
            reader.read(from + k * BITS / 8, part);
            for (int p = 0; p < reader.COLUMNS / 32; p++) {
                const int64_t here = k + 32 * p;
                store_words(wide + here * R + 32 * r,
                            multiply_fraction(part[p], pairs.values + r * groups + (here >> shift)));
            }
        }
    }
    for_tiles<std::min(4, TILE_ROWS)>(B, [&](int64_t m, auto count) {  // six would leave no registers in AVX-512
        tile_wide<R, decltype(count)::value>(w, place, wide, x, m, out + m * stride, stride);
    });
}

template <int BITS>
void multiply_integers(const Matrix& w, const Rows& x, int64_t B, float* out, int64_t stride, int64_t low, int64_t high) {
    const bool few = B <= MAX_FEW_ROWS;
    std::vector<int16_t> wide(few ? 0 : 4 * w.columns);
    for_places(low, high, few, [&](Place place, auto count) {
        constexpr int R = decltype(count)::value;
        if (few)
            rows_few<BITS, R>(w, place, x, B, out, stride);
        else
            rows_wide<BITS, R>(w, place, x, B, out, stride, wide.data());
    });
}

// Computes this thread's rows of the matrix: out (B, rows) fp32 = x (B, columns) times w^T, plus the bias.
inline void multiply(const Matrix& w, const Rows& x, int64_t B, float* out, int64_t stride, Share share) {
    const int64_t low = share.low(w.rows, 4), high = share.high(w.rows, 4);
    if (w.bits == 8) return multiply_integers<8>(w, x, B, out, stride, low, high);
    if (w.bits == 4) return multiply_integers<4>(w, x, B, out, stride, low, high);
    for_places(low, high, B <= MAX_STREAMED_ROWS, [&](Place place, auto count) {
        rows_bf16<decltype(count)::value>(w, place, x.values, B, out, stride);
    });
}

// Dequantizes rows to bf16, rounded once.
template <int BITS>
inline void dequantize(const Matrix& w, int64_t row, int64_t count, bf16* out) {
    const int64_t K = w.columns, groups = K / w.group;
    const Reader<BITS> reader(w, 0);
    for (int64_t r = row; r < row + count; r++)
        for (int64_t k = 0; k < K; k += reader.COLUMNS) {
            Words part[reader.COLUMNS / 32];
            reader.read(static_cast<const uint8_t*>(w.values) + (r * K + k) * BITS / 8, part);
            for (int p = 0; p < reader.COLUMNS / 32; p++) {
                int16_t whole[32];
                store_words(whole, part[p]);
                const Floats scale = set1(widen_one(w.scales[r * groups + (k + 32 * p) / w.group]));
                for (int c = 0; c < 32; c += LANES)
                    narrow(out + (r - row) * K + k + 32 * p + c, mul(from_int16(whole + c), scale));
            }
        }
}
