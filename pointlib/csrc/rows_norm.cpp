// Batch norm in training, forward and backward. Sums are made block of rows by block, then over the
// blocks in order and in float64: any number of threads gives the same bits, and the error does not
// grow with the rows.
#include <cmath>

#include "engine.h"
#include "rows.h"

using namespace pointlib;

namespace {

// Rows whose sums are made in the type's own accumulator; a block is read from memory once.
constexpr int64_t BLOCK = 256;

struct Blocks {
  int64_t rows, channels, row_bytes;
  int threads;

  Blocks(int64_t rows, int64_t channels, int64_t element_bytes, int64_t threads)
      : rows(rows),
        channels(channels),
        row_bytes(channels * element_bytes),
        threads(threads_for(rows * channels, threads)) {}

  int64_t count() const { return (rows + BLOCK - 1) / BLOCK; }
  int64_t size(int64_t block) const { return std::min(BLOCK, rows - block * BLOCK); }
  template <typename P>
  P* at(P* feats, int64_t block) const {  // a null pointer stays one
    using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
    return feats ? static_cast<Byte*>(feats) + block * BLOCK * row_bytes : nullptr;
  }
  template <typename Body>
  void each(Body body) const {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t block = 0; block < count(); ++block) body(block);
  }
};

template <typename T>
void forward(const RowKernels& kernels, const Blocks& blocks, const void* feats,
             const Sum<T>* weight, const Sum<T>* bias, double eps, const void* residual,
             double negative_slope, void* out, Sum<T>* mean, Sum<T>* var) {
  using S = Sum<T>;
  const int64_t channels = blocks.channels;
  const auto sums = scratch<S>(2 * blocks.count() * channels);
  const auto sum_of = [&](int64_t block) { return sums.get() + 2 * block * channels; };
  blocks.each([&](int64_t block) {
    kernels.moments(blocks.at(feats, block), blocks.size(block), channels, sum_of(block),
                    sum_of(block) + channels);
  });
  const auto scale = scratch<S>(2 * channels);
  S* shift = scale.get() + channels;
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0, squares = 0;
    for (int64_t block = 0; block < blocks.count(); ++block) total += sum_of(block)[c];
    const double centre = total / blocks.rows;
    for (int64_t block = 0; block < blocks.count(); ++block) {
      const double rows = blocks.size(block), distance = sum_of(block)[c] / rows - centre;
      squares += sum_of(block)[channels + c] + rows * distance * distance;
    }
    const double gain = (weight ? weight[c] : 1) / std::sqrt(squares / blocks.rows + eps);
    mean[c] = static_cast<S>(centre);
    var[c] = static_cast<S>(squares / blocks.rows);
    scale[c] = static_cast<S>(gain);
    shift[c] = static_cast<S>((bias ? bias[c] : 0) - centre * gain);
  }
  prefer_large_pages(out, blocks.rows * blocks.row_bytes);
  blocks.each([&](int64_t block) {
    kernels.affine(blocks.at(feats, block), blocks.size(block), channels, scale.get(), shift,
                   blocks.at(residual, block), negative_slope, blocks.at(out, block));
  });
}

template <typename T>
void backward(const RowKernels& kernels, const Blocks& blocks, const void* grad, const void* out,
              double negative_slope, const void* feats, const Sum<T>* weight, const Sum<T>* mean,
              const Sum<T>* var, double eps, void* grad_feats, Sum<T>* grad_weight,
              Sum<T>* grad_bias, void* grad_residual) {
  using S = Sum<T>;
  const int64_t channels = blocks.channels;
  const auto sums = scratch<S>(2 * blocks.count() * channels);
  const auto sum_of = [&](int64_t block) { return sums.get() + 2 * block * channels; };
  blocks.each([&](int64_t block) {
    kernels.grad_moments(blocks.at(grad, block), blocks.at(out, block), negative_slope,
                         blocks.at(feats, block), blocks.size(block), channels, mean, sum_of(block),
                         sum_of(block) + channels);
  });
  const auto scale = scratch<S>(3 * channels);
  S *slope = scale.get() + channels, *shift = slope + channels;
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0, product = 0;
    for (int64_t block = 0; block < blocks.count(); ++block) {
      total += sum_of(block)[c];
      product += sum_of(block)[channels + c];
    }
    const double inverse = 1 / std::sqrt(var[c] + eps), gain = (weight ? weight[c] : 1) * inverse;
    grad_weight[c] = static_cast<S>(product * inverse);
    grad_bias[c] = static_cast<S>(total);
    scale[c] = static_cast<S>(gain);
    slope[c] = static_cast<S>(-gain * inverse * inverse * product / blocks.rows);
    shift[c] = static_cast<S>(-gain * total / blocks.rows);
  }
  prefer_large_pages(grad_feats, blocks.rows * blocks.row_bytes);
  blocks.each([&](int64_t block) {
    kernels.grad_affine(blocks.at(grad, block), blocks.at(out, block), negative_slope,
                        blocks.at(feats, block), blocks.size(block), channels, mean, scale.get(),
                        slope, shift, blocks.at(grad_feats, block),
                        blocks.at(grad_residual, block));
  });
}

}  // namespace

// out = activation((feats - mean) / sqrt(var + eps) * weight + bias + residual), with the mean and
// the biased variance of each channel over all rows. Parameters and statistics are in Sum of the
// element; weight, bias and residual may be null for 1, 0 and 0.
POINTLIB_API int64_t pl_batch_norm(int64_t element, const void* feats, int64_t rows,
                                   int64_t channels, const void* weight, const void* bias,
                                   float eps, const void* residual, float negative_slope, void* out,
                                   void* mean, void* var, int64_t threads) {
  return guarded([&]() -> int64_t {
    with_element(element, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      using S = Sum<T>;
      forward<T>(row_kernels(element), Blocks(rows, channels, sizeof(T), threads), feats,
                 static_cast<const S*>(weight), static_cast<const S*>(bias), eps, residual,
                 negative_slope, out, static_cast<S*>(mean), static_cast<S*>(var));
    });
    return 0;
  });
}

// The gradients of feats, weight, bias and (unless null) residual from that of out. `out` is null
// where there was no activation.
POINTLIB_API int64_t pl_batch_norm_backward(int64_t element, const void* grad, const void* out,
                                            float negative_slope, const void* feats, int64_t rows,
                                            int64_t channels, const void* weight, const void* mean,
                                            const void* var, float eps, void* grad_feats,
                                            void* grad_weight, void* grad_bias, void* grad_residual,
                                            int64_t threads) {
  return guarded([&]() -> int64_t {
    with_element(element, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      using S = Sum<T>;
      backward<T>(row_kernels(element), Blocks(rows, channels, sizeof(T), threads), grad, out,
                  negative_slope, feats, static_cast<const S*>(weight), static_cast<const S*>(mean),
                  static_cast<const S*>(var), eps, grad_feats, static_cast<S*>(grad_weight),
                  static_cast<S*>(grad_bias), grad_residual);
    });
    return 0;
  });
}
