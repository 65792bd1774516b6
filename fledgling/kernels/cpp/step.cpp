// The functions that native.py calls: a product, a dequantized matrix, a whole decoding step, a read of memory.
//
// One row reads every weight once, so the weights must be read at the speed of memory, and everything else must take no
// time. A step is one call and one parallel region: each thread computes a range of every matrix's rows, and a barrier
// separates products that need each other's results. The residual stream, norms, rotation and softmax are fp32.
// vector.h has the instructions, product.h the products, block.h what is between them.
//
// B rows, C width, F intermediate size, K columns of a matrix, H heads, G key/value heads, D head width. Widths are
// multiples of 32.

#include <omp.h>

#include <initializer_list>

#include "block.h"

namespace {

constexpr int64_t MAX_PRIVATE_ROWS = 2;  // with so few, each thread computes all rows itself instead of waiting

// Rows of activations as a product reads them: made by all threads together, or by each for itself.
class Inputs {
  public:
    Inputs(int64_t B, int64_t K, int64_t threads)
        : B(B), copies(B <= MAX_PRIVATE_ROWS ? threads : 1), size(B * K), values(copies * size), integers(copies * size),
          scales(copies * B) {}

    // Calls make(b, row) for the rows of this thread, and encodes them where the weights have few bits.
    template <class Make>
    Rows fill(Share share, int64_t K, bool encoded, const Make& make) {
        const bool is_private = copies == share.threads;
        const int64_t copy = is_private ? share.thread : 0;
        bf16* to = values.data() + copy * size;
        int16_t* whole = integers.data() + copy * size;
        float* scale = scales.data() + copy * B;
        for (int64_t b = is_private ? 0 : share.thread; b < B; b += is_private ? 1 : share.threads) {
            make(b, to + b * K);
            if (encoded) scale[b] = encode(to + b * K, K, whole + b * K);
        }
        if (!is_private) {
#pragma omp barrier
        }
        return Rows{to, whole, scale};
    }

  private:
    int64_t B, copies, size;
    std::vector<bf16> values;
    std::vector<int16_t> integers;
    std::vector<float> scales;
};

bool reads_integers(std::initializer_list<const Matrix*> matrices) {
    return std::any_of(matrices.begin(), matrices.end(), [](const Matrix* w) { return w->values && w->bits != 16; });
}

inline Share this_share() { return Share{omp_get_thread_num(), omp_get_num_threads()}; }

}  // namespace

extern "C" {

// out (B, rows) fp32 = x (B, columns) bf16 times w^T, plus the bias.
void fledgling_linear(const Matrix* w, const bf16* x, int64_t B, float* out, int64_t threads) {
    const int64_t K = w->columns;
    std::vector<int16_t> integers(w->bits == 16 ? 0 : B * K);
    std::vector<float> scales(B);
#pragma omp parallel num_threads(threads)
    {
        if (w->bits != 16) {
#pragma omp for
            for (int64_t b = 0; b < B; b++) scales[b] = encode(x + b * K, K, integers.data() + b * K);
        }
        multiply(*w, Rows{x, integers.data(), scales.data()}, B, out, w->rows, this_share());
    }
}

// out (rows, columns) bf16 = the dequantized matrix.
void fledgling_widen(const Matrix* w, bf16* out, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        const Share share = this_share();
        const int64_t low = share.low(w->rows), count = share.high(w->rows) - low;
        if (w->bits == 8) dequantize<8>(*w, low, count, out + low * w->columns);
        if (w->bits == 4) dequantize<4>(*w, low, count, out + low * w->columns);
    }
}

// Reads an array as fast as all threads can, and returns a sum of it: the limit that a product of one row has.
uint64_t fledgling_read(const uint64_t* values, int64_t count, int64_t threads) {
    uint64_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const Share share = this_share();
        const int64_t part = (share.high(count, 32) - share.low(count, 32)) / 32 * 8;
        const uint64_t* from = values + share.low(count, 32);
        uint64_t sums[4][8] = {};
        for (int64_t k = 0; k + 8 <= part; k += 8)
            for (int row = 0; row < 4; row++) {  // four places at once, as a product reads four rows
                const uint64_t* at = from + row * part + k;
                prefetch(at + 256);
                for (int n = 0; n < 8; n++) sums[row][n] += at[n];
            }
        for (auto& row : sums)
            for (uint64_t sum : row) total += sum;
    }
    return total;
}

// Runs all blocks and the last norm for B new tokens, of one row or of several; x (B, C) fp32 is changed in place, out
// (B, C) bf16 is the result.
// keys, values: of each layer, bf16 (blocks, G, block, D); tables (B, most): the blocks of each token's row, in order;
// positions (B): the number of tokens before it; additions: of each layer, (B, G D), which are added to its values, or
// null.
void fledgling_step(const Shape* shape, const Layer* layers, float* x, bf16* out, int64_t B, bf16* const* keys,
                    bf16* const* values, const int64_t* tables, int64_t most, int64_t block, const int64_t* positions,
                    const float* const* additions, int64_t threads) {
    const Shape& s = *shape;
    const int64_t C = s.width, D = s.head_width, H = s.heads, G = s.kv_heads, F = s.intermediate_size, E = C + 2 * G * D;
    const int64_t longest = 32 + *std::max_element(positions, positions + B);
    Inputs inputs(B, std::max(C, F), threads);
    std::vector<bf16> attended(B * C), rotated(D * threads);
    const std::vector<float> embedded(x, x + B * C);
    std::vector<float> streams(s.keeps ? s.layers * B * C : 0);
    std::vector<float> wide(B * std::max(E, 2 * F)), added(B * C), weights(longest * threads);
#pragma omp parallel num_threads(threads)
    {
        const Share share = this_share();
        float* scratch = weights.data() + longest * share.thread;
        bf16* q = rotated.data() + D * share.thread;
        const auto multiply_and_add = [&](const Matrix& w, const Rows& rows) {  // adds a product to the residual stream
            multiply(w, rows, B, added.data(), C, share);  // not to `wide`, of which others may still make their rows
            for (int64_t b = 0; b < B; b++)
                for (int64_t c = share.low(C, 4); c < share.high(C, 4); c++) x[b * C + c] += added[b * C + c];
        };
        const auto angle = [&](const float* angles, int64_t b) {
            return angles ? angles + std::min(positions[b], s.context - 1) * D / 2 : nullptr;
        };
        const auto add_stream = [&](float factor, int64_t from, int64_t n) { x[n] += factor * streams[from * B * C + n]; };
        for (int64_t l = 0; l < s.layers; l++) {
            const Layer& layer = layers[l];
            if (s.keeps || layer.mix) {
                for (int64_t n = share.low(B * C); n < share.high(B * C); n++) {
                    if (s.keeps) streams[l * B * C + n] = x[n];
                    if (layer.skip) add_stream(*layer.skip, layer.skip_from, n);
                    if (layer.mix) x[n] = layer.mix[0] * x[n] + layer.mix[1] * embedded[n];
                }
#pragma omp barrier
            }
            const auto of = [&](bf16* const* pool, int64_t b, int64_t g) {
                return Cached{pool[l] + g * block * D, tables + b * most, block, G * block * D};
            };
            const bool gated = layer.gate.values != nullptr;
            Rows rows = inputs.fill(share, C, reads_integers({&layer.query, &layer.key, &layer.value}), [&](int64_t b, bf16* to) {
                normalize(layer.attention_norm, x + b * C, C, to);
            });
            multiply(layer.query, rows, B, wide.data(), E, share);
            multiply(layer.key, rows, B, wide.data() + C, E, share);
            multiply(layer.value, rows, B, wide.data() + C + G * D, E, share);
#pragma omp barrier
            for (int64_t job = share.low(B * G); job < share.high(B * G); job++) {
                const int64_t b = job / G, g = job % G, at = positions[b];
                const float* row = wide.data() + b * E + C + g * D;
                const float* more = additions[l] ? additions[l] + job * D : nullptr;
                const Floats share_of_it = set1(layer.value_gate ? open_gate(layer.value_gate + g * GATE_WIDTH, rows.values + b * C) : 1.0f);
                bf16* k = const_cast<bf16*>(of(keys, b, g).from(at, D));
                bf16* v = const_cast<bf16*>(of(values, b, g).from(at, D));
                rotate(s, row, angle(s.cosine, b), angle(s.sine, b), k);
                for (int64_t d = 0; d < D; d += LANES) {
                    const Floats own = load(row + G * D + d);
                    narrow(v + d, more ? fma(share_of_it, load(more + d), own) : own);
                }
            }
#pragma omp barrier
            for (int64_t job = share.low(B * H); job < share.high(B * H); job++) {
                const int64_t b = job / H, h = job % H, g = h / (H / G);
                rotate(s, wide.data() + b * E + h * D, angle(s.cosine, b), angle(s.sine, b), q);
                const int64_t length = positions[b] + 1;
                const int64_t first = layer.window ? std::max<int64_t>(0, length - layer.window) : 0;
                bf16* y = attended.data() + b * C + h * D;
                attend(q, of(keys, b, g), of(values, b, g), first, length, D, scratch, y);
                if (layer.head_gate || s.exclusive) {
                    const float opened = layer.head_gate ? open_gate(layer.head_gate + h * GATE_WIDTH, rows.values + b * C) : 1.0f;
                    scale_result(y, of(values, b, g).from(positions[b], D), opened, s.exclusive, D);
                }
            }
#pragma omp barrier
            rows = Rows{attended.data(), nullptr, nullptr};
            if (reads_integers({&layer.output}))
                rows = inputs.fill(share, C, true, [&](int64_t b, bf16* to) {
                    std::copy_n(attended.data() + b * C, C, to);
                });
            multiply_and_add(layer.output, rows);
#pragma omp barrier
            rows = inputs.fill(share, C, reads_integers({&layer.up, &layer.gate}), [&](int64_t b, bf16* to) {
                normalize(layer.feed_forward_norm, x + b * C, C, to);
            });
            multiply(layer.up, rows, B, wide.data(), 2 * F, share);
            if (gated) multiply(layer.gate, rows, B, wide.data() + F, 2 * F, share);
#pragma omp barrier
            rows = inputs.fill(share, F, reads_integers({&layer.down}), [&](int64_t b, bf16* to) {
                activate_row(s, wide.data() + b * 2 * F, gated, to);
            });
            multiply_and_add(layer.down, rows);
#pragma omp barrier
        }
        for (int64_t b = share.low(B); b < share.high(B); b++) {
            for (int64_t n = b * C; s.back_out && n < (b + 1) * C; n++) add_stream(-*s.back_out, s.back_out_from, n);
            normalize(s.last_norm, x + b * C, C, out + b * C);
        }
    }
}

}  // extern "C"
