// Batch norm in training, forward and backward. Sums are made block of rows by block, and then over
// the blocks in order and in float64: the same bits every run, and an error that does not grow with
// the rows.
#include "rows.cuh"

namespace pointlib {

// A number as the sum of two floats, which is how kernels are given a double.
__device__ inline double joined(float high, float low) {
  return static_cast<double>(high) + static_cast<double>(low);
}

// The rows of a block: [first, last), of which a group takes every groups-th.
struct RowRange {
  int64_t first, last;
  __device__ RowRange(int64_t rows, int64_t rows_per_block)
      : first(blockIdx.x * rows_per_block), last(min(rows, first + rows_per_block)) {}
};

// Mean and centred sum of squares of some rows of one channel.
template <class S>
struct Moments {
  S count, mean, squares;

  // Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
  // Variances", COMPSTAT 1982. `share` is other.count / (count + other.count).
  __device__ void merge(S other_mean, S other_squares, S share) {
    const S distance = other_mean - mean;
    mean += distance * share;
    squares += other_squares + distance * distance * count * share;
  }
};

// The moments of each channel over each block's rows: means and squares (blocks, channels).
template <class T, int N>
__global__ void __launch_bounds__(256, BLOCKS<N>)
    moments(const T* __restrict__ feats, int64_t rows, int64_t vectors, int64_t rows_per_block,
            int64_t lanes, accumulator<T>* __restrict__ means,
            accumulator<T>* __restrict__ squares) {
  using S = accumulator<T>;
  const Lanes at(lanes, vectors);
  const RowRange range(rows, rows_per_block);
  constexpr int AHEAD = N == 8 || N == 2 ? 2 : 4;  // rows of a thread on their way at once
  S count = 0, mean[N], square[N];
#pragma unroll
  for (int c = 0; c < N; c++) mean[c] = square[c] = 0;
  for (int64_t row = range.first + at.group; at.active && row < range.last;
       row += AHEAD * at.groups) {
    Pack<T, N> values[AHEAD];
    bool given[AHEAD];
    S taken = 0;
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      given[i] = row + i * at.groups < range.last;
      if (given[i]) values[i] = load<N>(feats, (row + i * at.groups) * vectors + at.vector);
      taken += given[i] ? 1 : 0;
    }
    const S inverse = 1 / taken, share = taken / (count + taken);
#pragma unroll
    for (int c = 0; c < N; c++) {
      S sum = 0, centred = 0;
#pragma unroll
      for (int i = 0; i < AHEAD; i++) sum += given[i] ? widen(values[i].at[c]) : 0;
      const S centre = sum * inverse;
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const S distance = given[i] ? widen(values[i].at[c]) - centre : 0;
        centred += distance * distance;
      }
      Moments<S> state{count, mean[c], square[c]};
      state.merge(centre, centred, share);
      mean[c] = state.mean;
      square[c] = state.squares;
    }
    count += taken;
  }
  extern __shared__ __align__(16) unsigned char shared_memory[];
  S* shared = reinterpret_cast<S*>(shared_memory);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  S* counts = shared + 2 * N * threads;
  counts[thread] = count;
#pragma unroll
  for (int c = 0; c < N; c++) {
    shared[2 * c * threads + thread] = mean[c];
    shared[(2 * c + 1) * threads + thread] = square[c];
  }
  merge_groups(at, [&](int other) {
    if (counts[other] == 0) return;
    const S share = counts[other] / (count + counts[other]);
#pragma unroll
    for (int c = 0; c < N; c++) {
      Moments<S> state{count, mean[c], square[c]};
      state.merge(shared[2 * c * threads + other], shared[(2 * c + 1) * threads + other], share);
      shared[2 * c * threads + thread] = mean[c] = state.mean;
      shared[(2 * c + 1) * threads + thread] = square[c] = state.squares;
    }
    counts[thread] = count += counts[other];
  });
  if (!at.active || at.group != 0) return;
  store_all(means, blockIdx.x * vectors + at.vector, mean);
  store_all(squares, blockIdx.x * vectors + at.vector, square);
}

// Sums of a block of eight channels by 32 threads each, in float64 and always in the same order;
// every thread gets its channel's.
constexpr int FINISH_CHANNELS = 8;
__device__ inline double sum_of_channel(double value, double* shared) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  __syncthreads();  // until the last sum is read
  shared[thread] = value;
  for (int span = threads / 2; span >= FINISH_CHANNELS; span /= 2) {
    __syncthreads();
    if (thread < span) shared[thread] += shared[thread + span];
  }
  __syncthreads();
  return shared[thread % FINISH_CHANNELS];
}

// From the blocks' moments those of all rows: mean and (biased) var (channels,), and
// gain = weight / sqrt(var + eps). weight may be null for 1.
template <class S>
__global__ void finish_moments(const S* __restrict__ means, const S* __restrict__ squares,
                               int64_t blocks, int64_t rows, int64_t rows_per_block,
                               int64_t channels, const S* __restrict__ weight, float eps,
                               float eps_low, S* __restrict__ mean, S* __restrict__ var,
                               S* __restrict__ gain) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  double* shared = reinterpret_cast<double*>(shared_memory);
  const int thread = static_cast<int>(threadIdx.x), part = thread / FINISH_CHANNELS;
  const int parts = static_cast<int>(blockDim.x) / FINISH_CHANNELS;
  const int64_t channel =
      static_cast<int64_t>(blockIdx.x) * FINISH_CHANNELS + thread % FINISH_CHANNELS;
  const bool active = channel < channels;
  double total = 0, centred = 0;
#pragma unroll 4
  for (int64_t block = part; active && block < blocks; block += parts) {
    const int64_t size = min(rows_per_block, rows - block * rows_per_block);
    total += static_cast<double>(means[block * channels + channel]) * static_cast<double>(size);
  }
  const double centre = sum_of_channel(total, shared) / static_cast<double>(rows);
#pragma unroll 4
  for (int64_t block = part; active && block < blocks; block += parts) {
    const int64_t size = min(rows_per_block, rows - block * rows_per_block);
    const double distance = static_cast<double>(means[block * channels + channel]) - centre;
    centred += static_cast<double>(squares[block * channels + channel]) +
               distance * distance * static_cast<double>(size);
  }
  const double variance = sum_of_channel(centred, shared) / static_cast<double>(rows);
  if (!active || part != 0) return;
  mean[channel] = static_cast<S>(centre);
  var[channel] = static_cast<S>(variance);
  const double scale = weight == nullptr ? 1 : static_cast<double>(weight[channel]);
  gain[channel] = static_cast<S>(scale / sqrt(variance + joined(eps, eps_low)));
}

// out = activation((feats - mean) * gain + bias + residual). bias and residual may be null for 0.
template <class T, int N>
__global__ void __launch_bounds__(256, BLOCKS<N>)
    normalize(const T* __restrict__ feats, int64_t rows, int64_t vectors, int64_t rows_per_block,
              int64_t lanes, const accumulator<T>* __restrict__ mean,
              const accumulator<T>* __restrict__ gain, const accumulator<T>* __restrict__ bias,
              const T* __restrict__ residual, float slope_high, float slope_low,
              T* __restrict__ out) {
  using S = accumulator<T>;
  const Lanes at(lanes, vectors);
  const RowRange range(rows, rows_per_block);
  if (!at.active) return;
  constexpr int AHEAD = N == 8 || N == 2 ? 1 : 2;
  const S slope = static_cast<S>(joined(slope_high, slope_low));
  S centre[N], scale[N], shift[N];
  load_all(mean, at.vector, centre);
  load_all(gain, at.vector, scale);
#pragma unroll
  for (int c = 0; c < N; c++) shift[c] = 0;
  if (bias != nullptr) load_all(bias, at.vector, shift);
  for (int64_t row = range.first + at.group; row < range.last; row += AHEAD * at.groups) {
    Pack<T, N> values[AHEAD], added[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int64_t from = (row + i * at.groups) * vectors + at.vector;
      if (row + i * at.groups >= range.last) continue;
      values[i] = load<N>(feats, from);
      if (residual != nullptr) added[i] = load<N>(residual, from);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (row + i * at.groups >= range.last) continue;
#pragma unroll
      for (int c = 0; c < N; c++) {
        S value = (widen(values[i].at[c]) - centre[c]) * scale[c] + shift[c];
        if (residual != nullptr) value += widen(added[i].at[c]);
        values[i].at[c] = narrow<T>(value < 0 ? value * slope : value);
      }
      store(out, (row + i * at.groups) * vectors + at.vector, values[i]);
    }
  }
}

// The gradient before the activation, whose output `out` tells its sign.
template <class T>
__device__ inline accumulator<T> before_activation(T grad, T out, accumulator<T> slope) {
  return widen(grad) * (widen(out) > 0 ? 1 : slope);
}

// Sums of each channel over each block's rows: of the gradient g before the activation, and of
// g * (feats - mean); totals and products (blocks, channels). `out` is null without an activation.
template <class T, int N>
__global__ void __launch_bounds__(256, BLOCKS<N>)
    grad_moments(const T* __restrict__ grad, const T* __restrict__ out, float slope_high,
                 float slope_low, const T* __restrict__ feats, int64_t rows, int64_t vectors,
                 int64_t rows_per_block, int64_t lanes, const accumulator<T>* __restrict__ mean,
                 accumulator<T>* __restrict__ totals, accumulator<T>* __restrict__ products) {
  using S = accumulator<T>;
  const Lanes at(lanes, vectors);
  const RowRange range(rows, rows_per_block);
  constexpr int AHEAD = N == 8 || N == 2 ? 1 : 2;
  const S slope = static_cast<S>(joined(slope_high, slope_low));
  S centre[N], total[N], product[N];
#pragma unroll
  for (int c = 0; c < N; c++) centre[c] = total[c] = product[c] = 0;
  if (at.active) load_all(mean, at.vector, centre);
  for (int64_t row = range.first + at.group; at.active && row < range.last;
       row += AHEAD * at.groups) {
    Pack<T, N> g[AHEAD], x[AHEAD], y[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int64_t from = (row + i * at.groups) * vectors + at.vector;
      if (row + i * at.groups >= range.last) continue;
      g[i] = load<N>(grad, from);
      x[i] = load<N>(feats, from);
      if (out != nullptr) y[i] = load<N>(out, from);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (row + i * at.groups >= range.last) continue;
#pragma unroll
      for (int c = 0; c < N; c++) {
        const S value =
            out == nullptr ? widen(g[i].at[c]) : before_activation(g[i].at[c], y[i].at[c], slope);
        total[c] += value;
        product[c] += value * (widen(x[i].at[c]) - centre[c]);
      }
    }
  }
  extern __shared__ __align__(16) unsigned char shared_memory[];
  S* shared = reinterpret_cast<S*>(shared_memory);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int c = 0; c < N; c++) {
    shared[2 * c * threads + thread] = total[c];
    shared[(2 * c + 1) * threads + thread] = product[c];
  }
  merge_groups(at, [&](int other) {
#pragma unroll
    for (int c = 0; c < N; c++) {
      shared[2 * c * threads + thread] = total[c] += shared[2 * c * threads + other];
      shared[(2 * c + 1) * threads + thread] = product[c] += shared[(2 * c + 1) * threads + other];
    }
  });
  if (!at.active || at.group != 0) return;
  store_all(totals, blockIdx.x * vectors + at.vector, total);
  store_all(products, blockIdx.x * vectors + at.vector, product);
}

// From the blocks' sums the gradients of weight and bias, and what grad_normalize multiplies with:
// scale, slope and shift (3, channels).
template <class S>
__global__ void finish_grad_moments(const S* __restrict__ totals, const S* __restrict__ products,
                                    int64_t blocks, int64_t rows, int64_t channels,
                                    const S* __restrict__ weight, const S* __restrict__ var,
                                    float eps, float eps_low, S* __restrict__ grad_weight,
                                    S* __restrict__ grad_bias, S* __restrict__ factors) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  double* shared = reinterpret_cast<double*>(shared_memory);
  const int thread = static_cast<int>(threadIdx.x), part = thread / FINISH_CHANNELS;
  const int parts = static_cast<int>(blockDim.x) / FINISH_CHANNELS;
  const int64_t channel =
      static_cast<int64_t>(blockIdx.x) * FINISH_CHANNELS + thread % FINISH_CHANNELS;
  const bool active = channel < channels;
  double total = 0, product = 0;
#pragma unroll 4
  for (int64_t block = part; active && block < blocks; block += parts) {
    total += static_cast<double>(totals[block * channels + channel]);
    product += static_cast<double>(products[block * channels + channel]);
  }
  total = sum_of_channel(total, shared);
  product = sum_of_channel(product, shared);
  if (!active || part != 0) return;
  const double inverse = 1 / sqrt(static_cast<double>(var[channel]) + joined(eps, eps_low));
  const double gain = weight == nullptr ? inverse : static_cast<double>(weight[channel]) * inverse;
  const double share = -gain / static_cast<double>(rows);
  grad_weight[channel] = static_cast<S>(product * inverse);
  grad_bias[channel] = static_cast<S>(total);
  factors[channel] = static_cast<S>(gain);
  factors[channels + channel] = static_cast<S>(share * inverse * inverse * product);
  factors[2 * channels + channel] = static_cast<S>(share * total);
}

// grad_feats = g * scale + (feats - mean) * slope + shift, and grad_residual (unless null) = g, the
// gradient before the activation.
template <class T, int N>
__global__ void __launch_bounds__(256, BLOCKS<N>)
    grad_normalize(const T* __restrict__ grad, const T* __restrict__ out, float slope_high,
                   float slope_low, const T* __restrict__ feats, int64_t rows, int64_t vectors,
                   int64_t rows_per_block, int64_t lanes, const accumulator<T>* __restrict__ mean,
                   const accumulator<T>* __restrict__ factors, T* __restrict__ grad_feats,
                   T* __restrict__ grad_residual) {
  using S = accumulator<T>;
  const Lanes at(lanes, vectors);
  const RowRange range(rows, rows_per_block);
  if (!at.active) return;
  constexpr int AHEAD = N == 8 || N == 2 ? 1 : 2;
  const S activation = static_cast<S>(joined(slope_high, slope_low));
  S centre[N], scale[N], slope[N], shift[N];
  load_all(mean, at.vector, centre);
  load_all(factors, at.vector, scale);
  load_all(factors, vectors + at.vector, slope);
  load_all(factors, 2 * vectors + at.vector, shift);
  for (int64_t row = range.first + at.group; row < range.last; row += AHEAD * at.groups) {
    Pack<T, N> g[AHEAD], x[AHEAD], y[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int64_t from = (row + i * at.groups) * vectors + at.vector;
      if (row + i * at.groups >= range.last) continue;
      g[i] = load<N>(grad, from);
      x[i] = load<N>(feats, from);
      if (out != nullptr) y[i] = load<N>(out, from);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int64_t to = (row + i * at.groups) * vectors + at.vector;
      if (row + i * at.groups >= range.last) continue;
#pragma unroll
      for (int c = 0; c < N; c++) {
        const S value = out == nullptr ? widen(g[i].at[c])
                                       : before_activation(g[i].at[c], y[i].at[c], activation);
        x[i].at[c] =
            narrow<T>(value * scale[c] + ((widen(x[i].at[c]) - centre[c]) * slope[c] + shift[c]));
        g[i].at[c] = narrow<T>(value);
      }
      store(grad_feats, to, x[i]);
      if (grad_residual != nullptr) store(grad_residual, to, g[i]);
    }
  }
}

// A batch norm over known statistics as scale * x + shift; weight, bias and the bias that x lacks
// may be null.
template <class S>
__global__ void __launch_bounds__(256)
    fold_batch_norm(const S* __restrict__ mean, const S* __restrict__ var,
                    const S* __restrict__ weight, const S* __restrict__ bias,
                    const S* __restrict__ earlier_bias, float eps, float eps_low, int64_t channels,
                    S* __restrict__ scale, S* __restrict__ shift) {
  const int64_t channel = global_thread();
  if (channel >= channels) return;
  const S gain = (weight == nullptr ? S(1) : weight[channel]) /
                 sqrt(static_cast<S>(var[channel] + joined(eps, eps_low)));
  const S centre = mean[channel] - (earlier_bias == nullptr ? S(0) : earlier_bias[channel]);
  scale[channel] = gain;
  shift[channel] = (bias == nullptr ? S(0) : bias[channel]) - centre * gain;
}

}  // namespace pointlib
