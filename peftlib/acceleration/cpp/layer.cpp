// What a BERT layer does between its matrix products but for attention: dropout, residual and normalisation, and GELU.
// Every function reads and writes large tensors once.

#include "vectors.h"

namespace {

// out = dropout(x), or that added to it.
template <class T>
void dropout(const T* x, T* out, bool added, int64_t rows, int64_t width, Dropout drop, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint16_t> random(width, 0xffff);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            if (drop.threshold) draw(drop.seed, row * width, width, random.data());
            for (int64_t j = 0; j < width; j += LANES) {
                Floats value = get(x + row * width + j) * kept(&random[j], drop);
                if (added) value += get(out + row * width + j);
                put(value, out + row * width + j);
            }
        }
    }
}

// out = LayerNorm(residual + dropout(product + bias)), or without residual; normal is what it was before weight and shift,
// if it is wanted.
template <class T>
void norm_forward(const T* product, const float* bias, const T* residual, const float* weight, const float* shift,
                  T* out, T* normal, float* rstd, int64_t rows, int64_t width, float eps, Dropout drop, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> total(width);
        std::vector<uint16_t> random(width, 0xffff);
        float* t = total.data();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            const T* x = product + row * width;
            if (drop.threshold) draw(drop.seed, row * width, width, random.data());
            Floats sums{}, squares{};
            for (int64_t j = 0; j < width; j += LANES) {
                Floats value = (get(x + j) + get(bias + j)) * kept(&random[j], drop);
                if (residual) value += get(residual + row * width + j);
                put(value, t + j);
                sums += value;
            }
            float mean = sum(sums) / width;
            for (int64_t j = 0; j < width; j += LANES) {
                Floats value = get(t + j) - mean;
                squares += value * value;
            }
            float inverse = rstd[row] = 1.0f / std::sqrt(sum(squares) / width + eps);
            for (int64_t j = 0; j < width; j += LANES) {
                Floats value = (get(t + j) - mean) * inverse;
                if (normal) put(value, normal + row * width + j);
                put(value * get(weight + j) + get(shift + j), out + row * width + j);
            }
        }
    }
}

// Gradients of residual and product, and sums (parts, 3, width) for weight, shift and bias, added to what is there.
template <class T>
void norm_backward(const T* gradient, const T* normal, const float* rstd, const float* weight, T* of_residual,
                   T* of_product, float* sums, int64_t rows, int64_t width, Dropout drop, int64_t parts, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint16_t> random(width, 0xffff);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++) {
            float *for_weight = sums + part * 3 * width, *for_shift = for_weight + width, *for_bias = for_shift + width;
            for (int64_t row = first_of(part, rows, parts); row < first_of(part + 1, rows, parts); row++) {
                const T *g = gradient + row * width, *n = normal + row * width;
                if (drop.threshold) draw(drop.seed, row * width, width, random.data());
                Floats straight{}, along{};
                for (int64_t j = 0; j < width; j += LANES) {
                    Floats above = get(g + j), x = get(n + j), scaled = above * get(weight + j);
                    add(above * x, for_weight + j);
                    add(above, for_shift + j);
                    straight += scaled;
                    along += scaled * x;
                }
                float mean = sum(straight) / width, slope = sum(along) / width;
                for (int64_t j = 0; j < width; j += LANES) {
                    Floats value = (get(g + j) * get(weight + j) - mean - get(n + j) * slope) * rstd[row];
                    put(value, of_residual + row * width + j);
                    value *= kept(&random[j], drop);
                    add(value, for_bias + j);
                    put(value, of_product + row * width + j);
                }
            }
        }
    }
}

// GELU's two functions, the normal distribution's F(x) and its own slope F(x) + x f(x): both are 1/2 + x p(x^2), and
// polynomials p of s = 2 (x / EDGE)^2 - 1 are minimax fits within EDGE (Lawson's algorithm). In fp32 F is exact to 2e-7
// and the slope to 7e-7; beyond EDGE they stay what they are there, which is off by 2e-7 and 3e-6. GELU itself is as
// exact as torch's, at half of the operations: no exponential, no division.
constexpr float EDGE = 5.25f;
constexpr float DISTRIBUTION[] = {
    -5.725195534e-04f, 1.466732040e-03f, -1.295860769e-03f, 1.843585016e-03f, -5.150125682e-03f,
    9.094821364e-03f,  -1.294053774e-02f, 1.831551691e-02f, -2.499789036e-02f, 3.206625317e-02f,
    -3.976837976e-02f, 4.964376306e-02f, -6.712665767e-02f, 1.346593652e-01f};
constexpr float SLOPE[] = {
    4.835485441e-03f, -1.199617879e-02f, 7.928340982e-03f, -8.021666921e-03f, 3.092215996e-02f,
    -5.221856201e-02f, 5.962673670e-02f, -6.913152181e-02f, 7.871280780e-02f, -7.819053729e-02f,
    7.019259872e-02f, -6.183931698e-02f, 5.927762689e-02f, -6.992462236e-02f, 1.350652111e-01f};

template <int64_t N>
inline Floats half_and_odd(Floats x, const float (&p)[N]) {
    x = x < -EDGE ? all(-EDGE) : x;
    x = x > EDGE ? all(EDGE) : x;
    // In two chains, which the processor computes at once.
    Floats s = x * x * (2 / (EDGE * EDGE)) - 1.0f, square = s * s, y = all(p[0]), beside = all(p[1]);
#pragma GCC unroll 8
    for (int64_t i = 2; i < N; i += 2) y = y * square + p[i];
#pragma GCC unroll 8
    for (int64_t i = 3; i < N; i += 2) beside = beside * square + p[i];
    y = N % 2 ? beside * s + y : y * s + beside;
    return x * y + 0.5f;
}

// out = gelu(product + bias)
template <class T>
void gelu_forward(const T* product, const float* bias, T* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t j = 0; j < width; j += LANES) {
            __builtin_prefetch(product + (row + 1) * width + j);
            Floats x = get(product + row * width + j) + get(bias + j);
            Floats y = x * half_and_odd(x, DISTRIBUTION);
            put(x < -EDGE ? Floats{} : y, out + row * width + j);  // x may be large
        }
    }
}

// Gradient of the product, which may lie over the one above, and its sums (parts, width), added to what is there.
template <class T>
void gelu_backward(const T* above, const T* product, const float* bias, T* out, float* sums, int64_t rows,
                   int64_t width, int64_t parts, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t row = first_of(part, rows, parts); row < first_of(part + 1, rows, parts); row++)
            for (int64_t j = 0; j < width; j += LANES) {
                __builtin_prefetch(product + (row + 1) * width + j);
                __builtin_prefetch(above + (row + 1) * width + j);
                Floats x = get(product + row * width + j) + get(bias + j);
                Floats value = get(above + row * width + j) * half_and_odd(x, SLOPE);
                add(value, sums + part * width + j);
                put(value, out + row * width + j);
            }
}

}  // namespace

// C's names for both types.
#define EXPORT(T, NAME)                                                                                                \
    extern "C" void dropout_##NAME(const T* x, T* out, int added, int64_t rows, int64_t width, Dropout drop,           \
                                   int threads) {                                                                      \
        dropout(x, out, added, rows, width, drop, threads);                                                            \
    }                                                                                                                  \
    extern "C" void norm_forward_##NAME(const T* product, const float* bias, const T* residual, const float* weight,   \
                                        const float* shift, T* out, T* normal, float* rstd, int64_t rows,              \
                                        int64_t width, float eps, Dropout drop, int threads) {                         \
        norm_forward(product, bias, residual, weight, shift, out, normal, rstd, rows, width, eps, drop, threads);      \
    }                                                                                                                  \
    extern "C" void norm_backward_##NAME(const T* gradient, const T* normal, const float* rstd, const float* weight,   \
                                         T* of_residual, T* of_product, float* sums, int64_t rows, int64_t width,      \
                                         Dropout drop, int64_t parts, int threads) {                                   \
        norm_backward(gradient, normal, rstd, weight, of_residual, of_product, sums, rows, width, drop, parts,         \
                      threads);                                                                                        \
    }                                                                                                                  \
    extern "C" void gelu_forward_##NAME(const T* product, const float* bias, T* out, int64_t rows, int64_t width,      \
                                        int threads) {                                                                 \
        gelu_forward(product, bias, out, rows, width, threads);                                                        \
    }                                                                                                                  \
    extern "C" void gelu_backward_##NAME(const T* above, const T* product, const float* bias, T* out, float* sums,     \
                                         int64_t rows, int64_t width, int64_t parts, int threads) {                    \
        gelu_backward(above, product, bias, out, sums, rows, width, parts, threads);                                   \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
