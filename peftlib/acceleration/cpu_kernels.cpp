// What a BERT layer does between its matrix products, on a CPU: every function reads and writes large tensors once.
//
// Large tensors are contiguous rows of tokens in fp32 or bf16; vectors, sums and all arithmetic are fp32. Widths are
// multiples of LANES. A result depends on the number of threads only through the order in which `sums` are added up.
// For g++, whose vector extensions it is written in; `cpu_compiler.py` builds it, `cpu_calls.py` calls it.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

// Of one head's tensors: where the first row is, and how many elements on the next one.
template <class T>
struct Rows {
    T* at;
    int64_t step;
    T* operator[](int64_t row) const { return at + row * step; }
};

struct Dropout {
    uint32_t threshold;  // Of 16 random bits: a smaller number drops its element. 0 is no dropout.
    float factor;        // For what is kept.
    uint64_t seed;
};

template <class V>
inline V load(const void* from) {
    V result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

// Sixteen-bit numbers in lanes of 32; g++ itself takes two steps for it.
inline Words widened(const void* from) {
#ifdef __AVX512F__
    return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(load<__m256i>(from)));
#else
    return __builtin_convertvector(load<Halves>(from), Words);
#endif
}

inline Floats all(float x) { return Floats{} + x; }

inline Floats get(const float* from) { return load<Floats>(from); }

inline Floats get(const bf16* from) {
    return reinterpret_cast<Floats>(widened(from) << 16);
}

inline void put(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }

// To the nearest bf16, ties to even; what is not a number stays none.
inline void put(Floats x, bf16* to) {
#ifdef __AVX512BF16__
    auto halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
#else
    Words bits = reinterpret_cast<Words>(x);
    Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    Halves halves = __builtin_convertvector(x == x ? rounded : Words{} + 0x7fc0, Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
}

inline void add(Floats x, float* to) { put(get(to) + x, to); }

inline float sum(Floats x) {
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int step = LANES / 2; step > 0; step /= 2) x += __builtin_shuffle(x, (lanes + step) & Ints(Ints{} + 15));
    return x[0];
}

// 2^x for x <= 0, relative error 2e-7 (below 2^-126 it stays there): 2^f by its series for the fraction f within
// -1/2 .. 1/2, and the integer added to the exponent's bits.
inline Floats power_of_two(Floats x) {
    x = x < -126.0f ? all(-126.0f) : x;
    Floats shifted = x + 12582912.0f;  // 1.5 * 2^23: the last bits are the integer
    Floats f = x - (shifted - 12582912.0f);
    Floats y = f * 1.540353039e-4f + 1.333355815e-3f;
    y = y * f + 9.618129108e-3f;
    y = y * f + 5.550410866e-2f;
    y = y * f + 2.402265070e-1f;
    y = y * f + 6.931471806e-1f;
    y = y * f + 1.0f;
    return reinterpret_cast<Floats>(reinterpret_cast<Ints>(y) + (reinterpret_cast<Ints>(shifted) << 23));
}

constexpr float LOG2_E = 1.442695041f;

// 16 random bits for each of n elements, from the one numbered `first` on; both multiples of 4. The generator is
// SplitMix64 (Steele, Lea, Flood 2014), whose words are a function of their number.
inline void draw(uint64_t seed, uint64_t first, int64_t n, uint16_t* out) {
    constexpr uint64_t golden = 0x9e3779b97f4a7c15u;
    uint64_t* words = reinterpret_cast<uint64_t*>(out);
    uint64_t start = seed + first / 4 * golden;
#pragma omp simd
    for (int64_t i = 0; i < n / 4; i++) {
        uint64_t z = start + static_cast<uint64_t>(i) * golden;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        words[i] = z ^ z >> 31;
    }
}

// What dropout multiplies elements by.
inline Floats kept(const uint16_t* random, Dropout drop) {
    return widened(random) >= drop.threshold ? all(drop.factor) : Floats{};
}

inline void add_up(const std::vector<float>& mine, float* sums) {
    for (size_t j = 0; j < mine.size(); j++) sums[j] += mine[j];
}

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

// out = LayerNorm(residual + dropout(product + bias)); normal is what it was before weight and shift.
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
            const T *x = product + row * width, *beside = residual + row * width;
            if (drop.threshold) draw(drop.seed, row * width, width, random.data());
            Floats sums{}, squares{};
            for (int64_t j = 0; j < width; j += LANES) {
                Floats value = (get(x + j) + get(bias + j)) * kept(&random[j], drop) + get(beside + j);
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
                put(value, normal + row * width + j);
                put(value * get(weight + j) + get(shift + j), out + row * width + j);
            }
        }
    }
}

// Gradients of residual and product, and sums (threads, 3, width) for weight, shift and bias.
template <class T>
void norm_backward(const T* gradient, const T* normal, const float* rstd, const float* weight, T* of_residual,
                   T* of_product, float* sums, int64_t rows, int64_t width, Dropout drop, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> mine(3 * width, 0.0f);
        std::vector<uint16_t> random(width, 0xffff);
        float *for_weight = mine.data(), *for_shift = for_weight + width, *for_bias = for_shift + width;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
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
        add_up(mine, sums + omp_get_thread_num() * mine.size());
    }
}

// The normal distribution's function and density: erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
inline void normal_distribution(Floats x, Floats& below, Floats& density) {
    Floats size = x < 0.0f ? -x : x;
    Floats t = 1.0f / (1.0f + 0.2316418882f * size);  // 0.3275911 / sqrt(2)
    Floats e = power_of_two(x * x * (-0.5f * LOG2_E));
    Floats tail = t * 0.5307027145f - 0.7265760135f;  // half of the coefficients
    tail = tail * t + 0.7107068705f;
    tail = tail * t - 0.142248368f;
    tail = (tail * t + 0.127414796f) * t * e;
    below = x < 0.0f ? tail : 1.0f - tail;
    density = e * 0.3989422804f;
}

// out = gelu(product + bias)
template <class T>
void gelu_forward(const T* product, const float* bias, T* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t j = 0; j < width; j += LANES) {
            Floats x = get(product + row * width + j) + get(bias + j), below, density;
            normal_distribution(x, below, density);
            put(x * below, out + row * width + j);
        }
    }
}

// Gradient of the product, which may lie over the one above, and its sums (threads, width).
template <class T>
void gelu_backward(const T* above, const T* product, const float* bias, T* out, float* sums, int64_t rows,
                   int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> mine(width, 0.0f);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t j = 0; j < width; j += LANES) {
                Floats x = get(product + row * width + j) + get(bias + j), below, density;
                normal_distribution(x, below, density);
                Floats value = get(above + row * width + j) * (below + x * density);
                add(value, &mine[j]);
                put(value, out + row * width + j);
            }
        }
        add_up(mine, sums + omp_get_thread_num() * width);
    }
}

// ── Attention ──────────────────────────────────────────────────────────────────────────────────────────────────────
// Products of fp32 numbers, or, where the processor has an instruction for it and the rows are bf16 anyway, of pairs of
// bf16 numbers, which is twice as fast: then two neighbours in the direction that is summed over are one element.

template <class T>
struct ElementOf {
    typedef float type;
};
#ifdef __AVX512BF16__
typedef uint32_t Pair;  // The first one in the low half.
template <>
struct ElementOf<bf16> {
    typedef Pair type;
};
inline Words lanes(const Pair* from) { return load<Words>(from); }
inline Floats multiply_add(Floats sum, Pair left, Words right) {
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                     reinterpret_cast<__m512bh>(Words{} + left),
                                                     reinterpret_cast<__m512bh>(right)));
}
#endif
inline Floats lanes(const float* from) { return get(from); }
inline Floats multiply_add(Floats sum, float left, Floats right) { return sum + left * right; }

// A matrix that is read one element at a time, so that it may as well be transposed.
template <class E>
struct Elements {
    const E* at;
    int64_t row, column;
};

template <int ROWS, int VECTORS, class E>
inline void tile(int64_t depth, Elements<E> a, Rows<const E> b, Rows<float> c) {
    Floats sums[ROWS][VECTORS] = {};  // unrolled, so that they are registers and nothing else
    for (int64_t k = 0; k < depth; k++) {
        decltype(lanes(b.at)) right[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) right[v] = lanes(b[k] + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = multiply_add(sums[r][v], a.at[r * a.row + k * a.column], right[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) put(sums[r][v], c[r] + v * LANES);
}

template <int ROWS, class E>
inline void band(int64_t depth, int64_t n, Elements<E> a, Rows<const E> b, Rows<float> c) {
    for (; n >= 2 * LANES; n -= 2 * LANES, b.at += 2 * LANES, c.at += 2 * LANES) tile<ROWS, 2>(depth, a, b, c);
    if (n) tile<ROWS, 1>(depth, a, b, c);
}

// c = a b, of shapes (m, depth) and (depth, n); n is a multiple of LANES. As many sums at a time as registers hold.
template <class E>
void multiply(int64_t m, int64_t depth, int64_t n, Elements<E> a, Rows<const E> b, Rows<float> c) {
    while (m > 0) {
        int rows = m >= 6 ? 6 : m >= 4 ? 4 : m >= 2 ? 2 : 1;
        (rows == 6 ? band<6, E> : rows == 4 ? band<4, E> : rows == 2 ? band<2, E> : band<1, E>)(depth, n, a, b, c);
        m -= rows;
        a.at += rows * a.row;
        c.at += rows * c.step;
    }
}

// A matrix of at most so many numbers, in fp32 and as elements.
template <class E>
struct Matrix {
    std::vector<float> numbers;
    std::vector<E> by_row, by_column;
    static constexpr int64_t PER = std::is_same<E, float>::value ? 1 : 2;  // numbers in an element

    explicit Matrix(int64_t most) : numbers(most), by_row(PER == 1 ? 0 : most), by_column(by_row.size()) {}

    float* operator[](int64_t at) { return &numbers[at]; }

    // Neighbours in a row: (rows, width / PER).
    const E* along(int64_t rows, int64_t width) {
        if constexpr (PER == 1) {
            return numbers.data();
        } else {
            bf16* to = reinterpret_cast<bf16*>(by_row.data());
            for (int64_t j = 0; j < rows * width; j += LANES) put(get(&numbers[j]), to + j);
            return by_row.data();
        }
    }

    // Neighbours in a column, the last one's of an odd number being zero: (rows / PER, width).
    const E* across(int64_t rows, int64_t width) {
        if constexpr (PER == 1) {
            return numbers.data();
        } else {
            for (int64_t i = 0; i < rows; i += 2)
                for (int64_t j = 0; j < width; j += LANES) {
                    Words first = halves(&numbers[i * width + j]);
                    Words second = i + 1 < rows ? halves(&numbers[(i + 1) * width + j]) : Words{};
                    Words both = first | second << 16;
                    std::memcpy(&by_column[i / 2 * width + j], &both, sizeof both);
                }
            return by_column.data();
        }
    }

    static Words halves(const float* from) {
        bf16 rounded[LANES];
        put(get(from), rounded);
        return widened(rounded);
    }
};

// (count, width) to (width, padded), zero behind count; blocks of LANES x LANES by four perfect shuffles.
template <class E>
void transpose(const E* from, int64_t count, int64_t width, int64_t padded, E* to) {
    const Ints low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
    for (int64_t i = 0; i < padded; i += LANES) {
        for (int64_t j = 0; j < width; j += LANES) {
            Words rows[LANES], mixed[LANES];
            int64_t columns = std::min(width - j, LANES);  // or the half of it
            for (int64_t k = 0; k < LANES; k++) {
                const E* row = from + (i + k) * width + j;
                rows[k] = Words{};
                if (i + k < count && columns == LANES) rows[k] = load<Words>(row);
                if (i + k < count && columns < LANES) std::memcpy(&rows[k], row, sizeof(Words) / 2);
            }
            for (int round = 0; round < 4; round++) {
                for (int64_t k = 0; k < LANES / 2; k++) {
                    mixed[2 * k] = __builtin_shuffle(rows[k], rows[k + LANES / 2], low);
                    mixed[2 * k + 1] = __builtin_shuffle(rows[k], rows[k + LANES / 2], high);
                }
                for (int64_t k = 0; k < LANES; k++) rows[k] = mixed[k];
            }
            for (int64_t k = 0; k < columns; k++) std::memcpy(to + (j + k) * padded + i, &rows[k], sizeof rows[k]);
        }
    }
}

// Queries, keys and values of all examples that lack their biases. An example's rows are those from starts[e] on;
// with `first_only`, its query is row e of a tensor with one row an example.
template <class T>
struct Attention {
    const T *query, *key, *value;
    int64_t query_step, step;
    const float *query_bias, *key_bias, *value_bias;
    const int64_t* starts;
    int64_t examples, heads, width;
    int first_only;
    Dropout drop;

    int64_t all_heads() const { return heads * width; }
};

// One head of one example. Weights have a row for each key and a lane for each query, so that the softmax of sixteen
// queries is one; what is in the lanes behind the last query meets zeros only.
template <class T>
struct Head {
    typedef typename ElementOf<T>::type E;
    static constexpr int64_t PER = Matrix<E>::PER;

    int64_t start, query_start, place, count, queries, padded, width;
    Matrix<E> query, key, value, weights, slopes, above;
    std::vector<E> turned;
    std::vector<float> inverse, out;
    std::vector<uint16_t> random;

    Head(int64_t longest, int64_t width) : Head(longest, upto(longest), width) {}
    Head(int64_t longest, int64_t most, int64_t width)
        : width(width), query(most * width), key(most * width), value(most * width), weights(upto(longest, 2) * most),
          slopes(upto(longest, 2) * most), above(most * width), turned(most * width), inverse(most),
          out(most * width), random(longest * most, 0xffff) {}

    static int64_t upto(int64_t n, int64_t step = LANES) { return (n + step - 1) / step * step; }

    void take(const Attention<T>& of, int64_t item) {
        int64_t example = item / of.heads;
        start = of.starts[example];
        query_start = of.first_only ? example : start;
        place = item % of.heads * width;
        count = of.starts[example + 1] - start;
        queries = of.first_only ? 1 : count;
        padded = upto(queries);
        read({of.query + place, of.query_step}, of.query_bias, query_start, queries, scale(), query);
        read({of.key + place, of.step}, of.key_bias, start, count, 1.0f, key);
        read({of.value + place, of.step}, of.value_bias, start, count, 1.0f, value);
        weigh();
        // No two heads' elements have the same number.
        if (of.drop.threshold) draw(of.drop.seed, static_cast<uint64_t>(item) << 32, count * padded, random.data());
    }

    float scale() const { return 1.0f / std::sqrt(static_cast<float>(width)); }

    void read(Rows<const T> from, const float* bias, int64_t first, int64_t rows, float scale, Matrix<E>& to) const {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < width; j += LANES) {
                Floats x = get(from[first + i] + j);
                put(bias ? (x + get(bias + place + j)) * scale : x, to[i * width + j]);
            }
    }

    // to = left right', a row for each key and a lane for each query.
    void compare(Matrix<E>& left, Matrix<E>& right, Matrix<E>& to) {
        transpose(right.along(queries, width), queries, width / PER, padded, turned.data());
        multiply<E>(count, width / PER, padded, {left.along(count, width), width / PER, 1}, {turned.data(), padded},
                    {to[0], padded});
    }

    // out = left' right, of (count, padded) and (count, width): a row for each query.
    void mix_keys(Matrix<E>& left, Matrix<E>& right) {
        multiply<E>(queries, (count + PER - 1) / PER, width, {left.across(count, padded), 1, padded},
                    {right.across(count, width), width}, {out.data(), width});
    }

    // out = left right, of (count, padded) and (queries, width): a row for each key.
    void mix_queries(Matrix<E>& left, Matrix<E>& right) {
        multiply<E>(count, (queries + PER - 1) / PER, width, {left.along(count, padded), padded / PER, 1},
                    {right.across(queries, width), width}, {out.data(), width});
    }

    // weights = softmax(key query'), over the keys, but for the factors in `inverse`.
    void weigh() {
        compare(key, query, weights);
        for (int64_t lane = 0; lane < padded; lane += LANES) {
            Rows<float> scores{weights[lane], padded};
            Floats most = get(scores[0]), sums{};
            for (int64_t k = 1; k < count; k++) {
                Floats score = get(scores[k]);
                most = score > most ? score : most;
            }
            for (int64_t k = 0; k < count; k++) {
                Floats weight = power_of_two((get(scores[k]) - most) * LOG2_E);
                put(weight, scores[k]);
                sums += weight;
            }
            put(1.0f / sums, &inverse[lane]);
        }
    }

    // weights: to softmax's, and what is kept of them.
    void keep_weights(Dropout drop) {
        for (int64_t lane = 0; lane < padded; lane += LANES) {
            Floats whole = get(&inverse[lane]);
            for (int64_t j = lane; j < count * padded; j += padded)
                put(get(weights[j]) * whole * kept(&random[j], drop), weights[j]);
        }
    }

    // slopes: of the kept weights' gradient, to the scores'; weights as in `keep_weights`.
    void slope(Dropout drop) {
        for (int64_t lane = 0; lane < padded; lane += LANES) {
            Rows<float> slope{slopes[lane], padded}, weight{weights[lane], padded};
            Rows<uint16_t> bits{&random[lane], padded};
            Floats whole = get(&inverse[lane]), sums{};
            for (int64_t k = 0; k < count; k++) sums += get(slope[k]) * kept(bits[k], drop) * get(weight[k]);
            sums *= whole;
            for (int64_t k = 0; k < count; k++) {
                Floats x = get(weight[k]) * whole, factor = kept(bits[k], drop);
                put(x * (get(slope[k]) * factor - sums), slope[k]);
                put(x * factor, weight[k]);
            }
        }
    }

    void write(int64_t rows, float scale, Rows<T> to, int64_t first, float* sums) const {
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; j < width; j += LANES) {
                Floats x = get(&out[i * width + j]) * scale;
                put(x, to[first + i] + place + j);
                if (sums) add(x, sums + place + j);
            }
        }
    }
};

// out: a row for each query.
template <class T>
void attention_forward(const Attention<T>& of, T* out, int64_t longest, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Head<T> head(longest, of.width);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < of.examples * of.heads; item++) {
            head.take(of, item);
            head.keep_weights(of.drop);
            head.mix_keys(head.weights, head.value);
            head.write(head.queries, 1.0f, {out, of.all_heads()}, head.query_start, nullptr);
        }
    }
}

// Gradients in the layout of queries, keys and values, and their sums (threads, 3, heads * width).
template <class T>
void attention_backward(const Attention<T>& of, const T* gradient, T* of_query, T* of_key, T* of_value, float* sums,
                        int64_t longest, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Head<T> head(longest, of.width);
        int64_t all = of.all_heads();
        std::vector<float> mine(3 * all, 0.0f);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < of.examples * of.heads; item++) {
            head.take(of, item);
            head.read({gradient + head.place, all}, nullptr, head.query_start, head.queries, 1.0f, head.above);
            head.compare(head.value, head.above, head.slopes);
            head.slope(of.drop);
            head.mix_keys(head.slopes, head.key);
            head.write(head.queries, head.scale(), {of_query, of.query_step}, head.query_start, mine.data());
            head.mix_queries(head.slopes, head.query);  // which are scaled already
            head.write(head.count, 1.0f, {of_key, of.step}, head.start, mine.data() + all);
            head.mix_queries(head.weights, head.above);
            head.write(head.count, 1.0f, {of_value, of.step}, head.start, mine.data() + 2 * all);
        }
        add_up(mine, sums + omp_get_thread_num() * mine.size());
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
                                         Dropout drop, int threads) {                                                  \
        norm_backward(gradient, normal, rstd, weight, of_residual, of_product, sums, rows, width, drop, threads);      \
    }                                                                                                                  \
    extern "C" void gelu_forward_##NAME(const T* product, const float* bias, T* out, int64_t rows, int64_t width,      \
                                        int threads) {                                                                 \
        gelu_forward(product, bias, out, rows, width, threads);                                                        \
    }                                                                                                                  \
    extern "C" void gelu_backward_##NAME(const T* above, const T* product, const float* bias, T* out, float* sums,     \
                                         int64_t rows, int64_t width, int threads) {                                   \
        gelu_backward(above, product, bias, out, sums, rows, width, threads);                                          \
    }                                                                                                                  \
    extern "C" void attention_forward_##NAME(const Attention<T>* of, T* out, int64_t longest, int threads) {           \
        attention_forward(*of, out, longest, threads);                                                                 \
    }                                                                                                                  \
    extern "C" void attention_backward_##NAME(const Attention<T>* of, const T* gradient, T* of_query, T* of_key,       \
                                              T* of_value, float* sums, int64_t longest, int threads) {                \
        attention_backward(*of, gradient, of_query, of_key, of_value, sums, longest, threads);                         \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
