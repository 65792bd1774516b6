// What a block computes between its products: norms, rotation, attention, activations. All in fp32; results are bf16.
//
// C width, H heads, G key/value heads, D head width.

#pragma once

#include <utility>

#include "product.h"

extern "C" {

struct Norm {
    const float* weight;  // (C) or null
    const float* bias;    // (C) or null
    int64_t centered;     // 1: the mean is subtracted first
    double eps;
};

struct Layer {
    Norm attention_norm, feed_forward_norm;
    Matrix query, key, value, output, up, gate, down;  // gate.values is null where the feed-forward part has no gate
    const float* value_gate;  // (G, GATE_WIDTH), of what is added to the values, or null
    const float* head_gate;   // (H, GATE_WIDTH), of the heads' results, or null
    const float* mix;         // a, b: the layer reads a x + b x0, with x0 the embedded token; or null
    const float* skip;        // s: the layer reads x + s y, with y the stream before layer `skip_from`; or null
    int64_t skip_from;
    int64_t window;           // tokens that a query sees, itself included; 0: all
};

struct Shape {
    int64_t layers, width, heads, kv_heads, head_width, intermediate_size;
    int64_t activation;  // 0 ReLU^2, 1 GELU by tanh, 2 SwiGLU
    int64_t normalize;   // 1: queries and keys are divided by their root mean square
    double eps;          // of that normalization
    int64_t exclusive;   // 1: a head's result is without its part along the token's own value
    int64_t keeps;       // 1: the stream before each layer is kept, for skips and for what is backed out
    const float* back_out;  // r: x - r y is normalized, with y the stream before layer `back_out_from`; or null
    int64_t back_out_from;
    Norm last_norm;         // of the result
    const float* cosine;    // (context, head_width / 2), or null without RoPE
    const float* sine;
    int64_t context;
};

constexpr int64_t GATE_WIDTH = 32;  // values of the normalized input that a gate reads

}  // extern "C"

inline void normalize(const Norm& norm, const float* x, int64_t C, bf16* out) {
    Floats sum = zero(), squares = zero();
    if (norm.centered)
        for (int64_t c = 0; c < C; c += LANES) sum = add(sum, load(x + c));
    const Floats mean = set1(sum_of(sum) / C);
    for (int64_t c = 0; c < C; c += LANES) {
        const Floats v = sub(load(x + c), mean);
        squares = fma(v, v, squares);
    }
    const Floats factor = set1(1.0f / std::sqrt(sum_of(squares) / C + float(norm.eps)));
    for (int64_t c = 0; c < C; c += LANES) {
        Floats v = mul(sub(load(x + c), mean), factor);
        if (norm.weight) v = mul(v, load(norm.weight + c));
        if (norm.bias) v = add(v, load(norm.bias + c));
        narrow(out + c, v);
    }
}

// Rotates a head's two halves by its position, then divides by its root mean square; to bf16.
inline void rotate(const Shape& s, const float* x, const float* cosine, const float* sine, bf16* out) {
    const int64_t D = s.head_width, half = D / 2;
    float rotated[512];
    for (int64_t d = 0; d < half; d++) {
        const float c = cosine ? cosine[d] : 1.0f, n = sine ? sine[d] : 0.0f;
        rotated[d] = x[d] * c + x[d + half] * n;
        rotated[d + half] = x[d + half] * c - x[d] * n;
    }
    if (s.normalize) return normalize(Norm{nullptr, nullptr, 0, s.eps}, rotated, D, out);
    for (int64_t d = 0; d < D; d += LANES) narrow(out + d, load(rotated + d));
}

// 2 sigmoid(w x), of a gate's weights and the normalized input.
inline float open_gate(const float* w, const bf16* x) {
    Floats sum = zero();
    for (int64_t c = 0; c < GATE_WIDTH; c += LANES) sum = fma(load(w + c), widen(x + c), sum);
    return 2.0f / (1.0f + std::exp(-sum_of(sum)));
}

// y (D) = factor * (y without its part along v).
inline void scale_result(bf16* y, const bf16* v, float factor, bool exclusive, int64_t D) {
    Floats along = zero(), squares = zero();
    if (exclusive)
        for (int64_t d = 0; d < D; d += LANES) {
            along = fma(widen(y + d), widen(v + d), along);
            squares = fma(widen(v + d), widen(v + d), squares);
        }
    const Floats share = set1(exclusive ? -sum_of(along) / std::max(sum_of(squares), 1e-12f) : 0.0f);
    for (int64_t d = 0; d < D; d += LANES) narrow(y + d, mul(set1(factor), fma(share, widen(v + d), widen(y + d))));
}

inline Floats products(const bf16* a, const bf16* b, int64_t D) {  // partial sums of the inner product
    Floats sum = zero();
    for (int64_t d = 0; d < D; d += 32) sum = dot_bf16(sum, load_words(a + d), load_words(b + d));
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

constexpr int64_t PIECE = 16;  // tokens: a page of memory at a head width of 128

// Calls read(places, token, far, count) for pieces of `count` tokens among those from `first` to `length` - 1, four at a
// time: places[r] is the piece that begins at token + r * far. Returns the tokens {begin, end} that these pieces hold.
// A processor reads ahead within a page alone, so that each page begins with a wait for memory; four waits are as long as
// one. A piece lies in one block.
template <class Read>
inline std::pair<int64_t, int64_t> read_four(const Cached& from, int64_t first, int64_t length, int64_t D,
                                             const Read& read) {
    const int64_t count = from.block % PIECE ? from.block : PIECE;
    const int64_t begin = (first + count - 1) / count * count;
    const int64_t far = std::max<int64_t>(0, length / count * count - begin) / count / 4 * count;
    for (int64_t token = begin; token < begin + far; token += count) {
        const bf16* places[4];
        for (int r = 0; r < 4; r++) places[r] = from.from(token + r * far, D);
        read(places, token, far, count);
    }
    return {begin, begin + 4 * far};
}

// Calls read(place, token, end) for the tokens from `first` to `length` - 1, those of one block at a time.
template <class Read>
inline void read_blocks(const Cached& from, int64_t first, int64_t length, int64_t D, const Read& read) {
    for (int64_t token = first, end; token < length; token = end) {
        end = std::min(length, (token / from.block + 1) * from.block);
        read(from.from(token, D), token, end);
    }
}

// out[d .. d + LANES N] = factor * sum over tokens of weights[token] * value[d ...]
template <int N>
inline void mix(const Cached& values, const float* weights, int64_t first, int64_t length, int64_t D, int64_t d,
                Floats factor, bf16* out) {
    Floats sum[N];
    for (int n = 0; n < N; n++) sum[n] = zero();
    const auto add_token = [&](const bf16* v, int64_t token) {
        const Floats w = set1(weights[token]);
        for (int n = 0; n < N; n++) sum[n] = fma(w, widen(v + d + LANES * n), sum[n]);
    };
    const auto add_block = [&](const bf16* v, int64_t token, int64_t end) {
        for (; token < end; token++, v += D) add_token(v, token);
    };
    const auto add_four = [&](const bf16* const* v, int64_t token, int64_t far, int64_t count) {
        for (int64_t t = 0; t < count; t++)
            for (int r = 0; r < 4; r++) add_token(v[r] + t * D, token + r * far + t);
    };
    const auto done = read_four(values, first, length, D, add_four);
    read_blocks(values, first, std::min(length, done.first), D, add_block);
    read_blocks(values, done.second, length, D, add_block);
    for (int n = 0; n < N; n++) narrow(out + d + LANES * n, mul(sum[n], factor));
}

// Attention of one query over the keys and values of tokens `first` to `length` - 1; weights: scratch of length + 16. Keys
// are read four at a time, also before the first and after the last one: the size of a block is a multiple of four.
inline void attend(const bf16* q, const Cached& keys, const Cached& values, int64_t first, int64_t length, int64_t D,
                   float* weights, bf16* out) {
    const int64_t low = first / 16 * 16;
    const auto score_block = [&](const bf16* k, int64_t token, int64_t end) {
        for (; token < end; token += 4, k += 4 * D)
            store_sums(weights + token, products(q, k, D), products(q, k + D, D), products(q, k + 2 * D, D),
                       products(q, k + 3 * D, D));
    };
    const auto score_four = [&](const bf16* const* k, int64_t token, int64_t far, int64_t count) {
        for (int64_t t = 0; t < count; t++) {
            float sums[4];
            store_sums(sums, products(q, k[0] + t * D, D), products(q, k[1] + t * D, D), products(q, k[2] + t * D, D),
                       products(q, k[3] + t * D, D));
            for (int r = 0; r < 4; r++) weights[token + r * far + t] = sums[r];
        }
    };
    const auto done = read_four(keys, first, length, D, score_four);
    read_blocks(keys, first / 4 * 4, std::min(length, done.first), D, score_block);
    read_blocks(keys, done.second, length, D, score_block);
    for (int64_t s = low; s < first; s++) weights[s] = -INFINITY;
    for (int64_t s = length; s < (length + 15) / 16 * 16; s++) weights[s] = -INFINITY;
    Floats most = set1(-INFINITY), total = zero();
    for (int64_t s = low; s < length; s += LANES) most = max(most, load(weights + s));
    most = set1(largest_of(most));
    const Floats scale = set1(1.0f / std::sqrt(float(D)));
    for (int64_t s = low; s < length; s += LANES) {
        const Floats w = exponential(mul(scale, sub(load(weights + s), most)));
        total = add(total, w);
        store(weights + s, w);
    }
    const Floats factor = set1(1.0f / sum_of(total));
    int64_t d = 0;
    for (; d + 8 * LANES <= D; d += 8 * LANES) mix<8>(values, weights, first, length, D, d, factor, out);
    for (; d + 2 * LANES <= D; d += 2 * LANES) mix<2>(values, weights, first, length, D, d, factor, out);
}

inline Floats activate(int64_t kind, Floats x, Floats up) {
    if (kind == 0) {
        const Floats kept = max(zero(), x);  // in this order, which keeps a NaN
        return mul(kept, kept);
    }
    Floats t = x;  // GELU and SiLU are x times a logistic function: tanh(z) = 2 / (1 + exp(-2 z)) - 1
    if (kind == 1) {
        t = fma(mul(mul(x, x), x), set1(0.044715f), x);
        t = mul(t, set1(2 * 0.7978845608f));
    }
    const Floats bounded = min(sub(zero(), t), set1(88.0f));
    const Floats y = div(x, add(set1(1.0f), exponential(bounded)));
    return kind == 2 ? mul(y, up) : y;
}

// out (F) bf16 = the activation of one row of `up` (F), followed by its gate (F) where there is one.
inline void activate_row(const Shape& s, const float* up, bool gated, bf16* out) {
    const int64_t F = s.intermediate_size;
    for (int64_t c = 0; c < F; c += LANES) {
        const Floats u = load(up + c), g = gated ? load(up + F + c) : u;
        narrow(out + c, activate(s.activation, g, u));
    }
}
