// Runs the native kernels on made-up numbers and prints the results, one number a line, so that builds for different
// processors can be compared: products of each width, then decoding steps.

#include <cstdio>

#include "../../fledgling/kernels/cpp/step.cpp"

namespace {

uint32_t state = 1;

float draw() {  // uniform in [-1, 1): exact in fp32, so every processor draws the same
    state = state * 1664525u + 1013904223u;
    return float(int32_t(state >> 8) - (1 << 23)) / float(1 << 23);
}

bf16 to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bf16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

const int8_t LEVELS[16] = {-127, -103, -83, -66, -51, -37, -24, -11, 2, 15, 28, 41, 56, 72, 90, 113};

struct Weights {
    std::vector<bf16> values16, scales;
    std::vector<uint8_t> values;
    std::vector<int16_t> fractions;
    std::vector<float> row_scales;
    Matrix matrix;

    Weights(int64_t rows, int64_t columns, int64_t bits, int64_t group = 32) {
        matrix = Matrix{nullptr, nullptr, nullptr, LEVELS, nullptr, nullptr, rows, columns, bits, group};
        if (bits == 16) {
            for (int64_t n = 0; n < rows * columns; n++) values16.push_back(to_bf16(draw() * 0.1f));
            matrix.values = values16.data();
            return;
        }
        for (int64_t n = 0; n < rows * columns * bits / 8; n++) {
            const int byte = int(draw() * 127.0f);
            values.push_back(uint8_t(bits == 8 ? byte : byte + 128));
        }
        for (int64_t r = 0; r < rows; r++) {
            float largest = 0.0f;
            std::vector<float> scale;
            for (int64_t g = 0; g < columns / group; g++) {
                scales.push_back(to_bf16(draw() * 0.002f));
                scale.push_back(widen_one(scales.back()));
                largest = std::max(largest, std::fabs(scale.back()));
            }
            for (float one : scale) fractions.push_back(int16_t(std::lrintf(one / largest * 32767)));
            row_scales.push_back(largest * float(32768.0 / 32767 / (1 << WIDE_BITS)));
        }
        matrix.values = values.data();
        matrix.scales = scales.data();
        matrix.fractions = fractions.data();
        matrix.row_scales = row_scales.data();
    }
};

void print(const std::vector<float>& values) {
    for (float value : values) std::printf("%.9g\n", double(value));
}

void run_products() {
    for (int64_t bits : {16, 8, 4})
        for (int64_t group : {32, 64})
            for (int64_t B : {1, 2, 9}) {
                const Weights w(10, 576, bits, group);
                std::vector<bf16> x(B * 576);
                for (bf16& value : x) value = to_bf16(draw());
                std::vector<float> out(B * 10);
                fledgling_linear(&w.matrix, x.data(), B, out.data(), 2);
                print(out);
                if (bits == 16) continue;
                std::vector<bf16> whole(10 * 576);
                fledgling_widen(&w.matrix, whole.data(), 2);
                for (bf16 value : whole) std::printf("%d\n", value);
            }
}

void run_step(int64_t bits, int64_t activation, int64_t B) {
    const int64_t C = 128, H = 4, G = 2, D = 32, F = 256, block = 8, blocks = 2 * B;
    const Norm norm{nullptr, nullptr, activation == 1, 1e-5};
    const Weights query(C, C, bits), key(G * D, C, bits), value(G * D, C, bits), output(C, C, bits);
    const Weights up(F, C, bits), gate(F, C, bits), down(C, F, bits);
    std::vector<float> gates(H * GATE_WIDTH), scalars{0.9f, 0.2f, 0.3f};
    for (float& one : gates) one = draw();
    const bool has_features = activation == 0;
    const float* const opened = has_features ? gates.data() : nullptr;
    const float* const numbers = has_features ? scalars.data() : nullptr;
    const Layer layer{norm, norm, query.matrix, key.matrix, value.matrix, output.matrix, up.matrix,
                      activation == 2 ? gate.matrix : Matrix{}, down.matrix, opened, opened, numbers, nullptr, 0,
                      has_features ? 6 : 0};
    const Shape shape{1, C, H, G, D, F, activation, activation == 0, 1e-6, has_features, has_features, numbers, 0};
    std::vector<bf16> keys(blocks * G * block * D), values(keys.size());
    for (bf16& one : keys) one = to_bf16(draw());
    for (bf16& one : values) one = to_bf16(draw());
    std::vector<float> x(B * C), cosine(B * D / 2), sine(B * D / 2);
    for (float& one : x) one = draw();
    for (size_t n = 0; n < cosine.size(); n++) cosine[n] = 0.8f, sine[n] = 0.6f;
    std::vector<int64_t> tables, positions;
    for (int64_t b = 0; b < B; b++) {
        tables.insert(tables.end(), {2 * b + 1, 2 * b});
        positions.push_back(5 + 3 * b % 10);
    }
    bf16* pools[2] = {keys.data(), values.data()};
    std::vector<float> addition(B * G * D);
    for (float& one : addition) one = draw();
    const float* additions[1] = {has_features ? addition.data() : nullptr};
    fledgling_step(&shape, &layer, x.data(), B, pools, pools + 1, tables.data(), 2, block, positions.data(), cosine.data(),
                   sine.data(), additions, 2);
    print(x);
}

}  // namespace

int main() {
    run_products();
    for (int64_t bits : {16, 8, 4})
        for (int64_t activation : {0, 1, 2})
            for (int64_t B : {1, 5}) run_step(bits, activation, B);
}
