// Attention of packed rows, forward and backward: nothing of the size of its weights is kept.

#include "products.h"

namespace {

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

// Queries, keys and values of all examples, to which biases are added where there are some. An example's rows are those
// from starts[e] on; its queries as well, or, where they are `queries` for each, rows e * queries on of their tensor.
template <class T>
struct Attention {
    const T *query, *key, *value;
    int64_t query_step, step;
    const float *query_bias, *key_bias, *value_bias;
    const int64_t* starts;
    int64_t examples, heads, width, queries;
    float scale;
    Dropout drop;

    int64_t all_heads() const { return heads * width; }
};

// One head of one example. Weights have a row for each key and a lane for each query, so that the softmax of as many
// queries is one; what is in the lanes behind the last query meets zeros only.
template <class T>
struct Head {
    typedef typename ElementOf<T>::type E;

    int64_t start, query_start, head, place, count, queries, padded, width;
    Rounded<E> query, key, value, above;
    Exact<E> weights, slopes;
    std::vector<E> turned;
    std::vector<float> inverse, kept_slopes, out;
    std::vector<uint16_t> random;

    Head(const Attention<T>& of, int64_t longest) : Head(longest, upto(std::max(longest, of.queries)), of.width) {}
    Head(int64_t longest, int64_t most, int64_t width)
        : width(width), query(most * width), key(most * width), value(most * width), above(most * width),
          weights(upto(longest) * most), slopes(upto(longest) * most), turned(most * width), inverse(most),
          kept_slopes(most), out(most * width), random(longest * most, 0xffff) {}

    static int64_t upto(int64_t n) { return (n + MOST_LANES - 1) / MOST_LANES * MOST_LANES; }

    void take(const Attention<T>& of, int64_t item) {
        int64_t example = item / of.heads;
        head = item % of.heads;
        start = of.starts[example];
        place = head * width;
        count = of.starts[example + 1] - start;
        queries = of.queries ? of.queries : count;
        query_start = of.queries ? example * queries : start;
        padded = upto(queries);
        read({of.query + place, of.query_step}, of.query_bias, query_start, queries, of.scale, query);
        read({of.key + place, of.step}, of.key_bias, start, count, 1.0f, key);
        read({of.value + place, of.step}, of.value_bias, start, count, 1.0f, value);
        weigh();
        // No two heads' elements have the same number.
        if (of.drop.threshold) draw(of.drop.seed, static_cast<uint64_t>(item) << 32, count * padded, random.data());
    }

    void read(Rows<const T> from, const float* bias, int64_t first, int64_t rows, float scale, Rounded<E>& to) const {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < width; j += LANES) {
                Floats x = get(from[first + i] + j);
                __builtin_prefetch(from[first + i] + j + width);  // the next head's
                if (bias) x += get(bias + place + j);
                put(x * scale, to[i * width + j]);
            }
    }

    // to = left right', a row for each key and a lane for each query.
    void compare(Rounded<E>& left, Rounded<E>& right, Exact<E>& to) {
        transpose(right.along(queries, width), queries, width / PER<E>, padded, turned.data());
        multiply<E>(count, width / PER<E>, padded, {left.along(count, width), width / PER<E>, 1},
                    {turned.data(), padded}, {to[0], padded});
    }

    // out = left' right, of (count, padded) and (count, width): a row for each query.
    void mix_keys(Exact<E>& left, Rounded<E>& right) {
        multiply<E>(queries, (count + PER<E> - 1) / PER<E>, width, {left.across(count, padded), 1, padded},
                    {right.across(count, width), width}, {out.data(), width});
    }

    // out = left right, of (count, padded) and (queries, width): a row for each key.
    void mix_queries(Exact<E>& left, Rounded<E>& right) {
        multiply<E>(count, (queries + PER<E> - 1) / PER<E>, width, {left.along(count, padded), padded / PER<E>, 1},
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

    // weights: what is kept of them, but for the factors in `inverse`.
    void keep_weights(Dropout drop) {
        if (drop.threshold)
            for (int64_t j = 0; j < count * padded; j += LANES) put(get(weights[j]) * kept(&random[j], drop), weights[j]);
    }

    // to: a number for each query and head, the sum of its weights.
    void add_weights(Rows<float> to) {
        for (int64_t lane = 0; lane < padded; lane += LANES) {
            Floats sums{};
            for (int64_t k = 0; k < count; k++) sums += get(weights[k * padded + lane]);
            sums *= get(&inverse[lane]);
            for (int64_t i = 0; i < LANES && lane + i < queries; i++) to[query_start + lane + i][head] = sums[i];
        }
    }

    // The gradients of what `add_weights` gave.
    void read_kept_slopes(Rows<const float> from) {
        for (int64_t i = 0; i < queries; i++) kept_slopes[i] = from[query_start + i][head];
    }

    // slopes: of the kept weights' gradient, to the scores'; weights: to softmax's, and what is kept of them.
    void slope(Dropout drop) {
        for (int64_t lane = 0; lane < padded; lane += LANES) {
            Rows<float> slope{slopes[lane], padded}, weight{weights[lane], padded};
            Rows<uint16_t> bits{&random[lane], padded};
            Floats whole = get(&inverse[lane]), more = get(&kept_slopes[lane]), sums{};
            for (int64_t k = 0; k < count; k++) sums += (get(slope[k]) + more) * kept(bits[k], drop) * get(weight[k]);
            sums *= whole;
            for (int64_t k = 0; k < count; k++) {
                Floats x = get(weight[k]) * whole, factor = kept(bits[k], drop);
                put(x * ((get(slope[k]) + more) * factor - sums), slope[k]);
                put(x * factor, weight[k]);
            }
        }
    }

    // out, each row of it by its factor.
    void write_weighed(Rows<T> to) const {
        for (int64_t i = 0; i < queries; i++)
            for (int64_t j = 0; j < width; j += LANES)
                put(get(&out[i * width + j]) * inverse[i], to[query_start + i] + place + j);
    }

    void write_gradient(int64_t rows, float scale, Rows<T> to, int64_t first, float* sums) const {
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; j < width; j += LANES) {
                Floats x = get(&out[i * width + j]) * scale;
                __builtin_prefetch(to[first + i] + place + width + j, 1);  // the next head's
                put(x, to[first + i] + place + j);
                add(x, sums + place + j);
            }
        }
    }
};

// out: a row for each query; of_weights: their sums, a row for each query and a column for each head, if wanted.
template <class T>
void attention_forward(const Attention<T>& of, T* out, float* of_weights, int64_t longest, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        Head<T> head(of, longest);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < of.examples * of.heads; item++) {
            head.take(of, item);
            head.keep_weights(of.drop);
            if (of_weights) head.add_weights({of_weights, of.heads});
            head.mix_keys(head.weights, head.value);
            head.write_weighed({out, of.all_heads()});
        }
    }
}

// Gradients in the layout of queries, keys and values, and their sums (parts, 3, heads * width), added to what is there.
template <class T>
void attention_backward(const Attention<T>& of, const T* gradient, const float* of_weights, T* of_query, T* of_key,
                        T* of_value, float* sums, int64_t longest, int64_t parts, int threads) {
    int64_t all = of.all_heads(), items = of.examples * of.heads;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        Head<T> head(of, longest);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++) {
            float *for_query = sums + part * 3 * all, *for_key = for_query + all, *for_value = for_key + all;
            for (int64_t item = first_of(part, items, parts); item < first_of(part + 1, items, parts); item++) {
                head.take(of, item);
                if (of_weights) head.read_kept_slopes({of_weights, of.heads});
                head.read({gradient + head.place, all}, nullptr, head.query_start, head.queries, 1.0f, head.above);
                head.compare(head.value, head.above, head.slopes);
                head.slope(of.drop);
                head.mix_keys(head.slopes, head.key);
                head.write_gradient(head.queries, of.scale, {of_query, of.query_step}, head.query_start, for_query);
                head.mix_queries(head.slopes, head.query);  // which are scaled already
                head.write_gradient(head.count, 1.0f, {of_key, of.step}, head.start, for_key);
                head.mix_queries(head.weights, head.above);
                head.write_gradient(head.count, 1.0f, {of_value, of.step}, head.start, for_value);
            }
        }
    }
}

}  // namespace

// C's names for both types.
#define EXPORT(T, NAME)                                                                                                \
    extern "C" void attention_forward_##NAME(const Attention<T>* of, T* out, float* of_weights, int64_t longest,       \
                                             int threads) {                                                            \
        attention_forward(*of, out, of_weights, longest, threads);                                                     \
    }                                                                                                                  \
    extern "C" void attention_backward_##NAME(const Attention<T>* of, const T* gradient, const float* of_weights,      \
                                              T* of_query, T* of_key, T* of_value, float* sums, int64_t longest,       \
                                              int64_t parts, int threads) {                                            \
        attention_backward(*of, gradient, of_weights, of_query, of_key, of_value, sums, longest, parts, threads);      \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
