// Rotated boxes [x, y, z, l, w, h, yaw]: overlap of every pair, suppression of those that overlap a
// better one, and which boxes hold a point.
#include "types.cuh"

namespace pointlib {

constexpr int BOX_NUMBERS = 7;
constexpr int BOX_THREADS = 128;     // of a block, at most
constexpr int SETTLE_THREADS = 256;  // of settle_suppression's

template <class T>
struct Box {
  T x, y, z, l, w, h, yaw;

  __device__ explicit Box(const T* from)
      : x(from[0]), y(from[1]), z(from[2]), l(from[3]), w(from[4]), h(from[5]), yaw(from[6]) {}
  __device__ T area() const { return l * w; }
};

// The part of the smaller footprint that may be left over from rounding where two only touch.
template <class T>
constexpr T NOISE = T(2e-6);
template <>
constexpr double NOISE<double> = 1e-14;

__device__ inline float smaller(float a, float b) { return fminf(a, b); }
__device__ inline double smaller(double a, double b) { return fmin(a, b); }
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger(double a, double b) { return fmax(a, b); }
__device__ inline float cosine(float angle) { return cosf(angle); }
__device__ inline double cosine(double angle) { return cos(angle); }
__device__ inline float sine(float angle) { return sinf(angle); }
__device__ inline double sine(double angle) { return sin(angle); }
__device__ inline float magnitude(float value) { return fabsf(value); }
__device__ inline double magnitude(double value) { return fabs(value); }

template <class T>
__device__ inline T clamp(T value, T bound) {
  return smaller(larger(value, -bound), bound);
}

// Integral of clamp(y, -bound_y, bound_y) dx along an edge, over its part within |x| <= bound_x.
template <class T>
__device__ inline T edge_share(T x0, T y0, T x1, T y1, T bound_x, T bound_y) {
  const T start = clamp(x0, bound_x), stop = clamp(x1, bound_x);
  if (start == stop) return 0;
  const T slope = (y1 - y0) / (x1 - x0);
  const T from_y = y0 + (start - x0) * slope, to_y = y1 + (stop - x1) * slope;
  const T low = smaller(from_y, to_y), high = larger(from_y, to_y);
  const T low_inside = clamp(low, bound_y), high_inside = clamp(high, bound_y);
  if (low == high) return (stop - start) * low_inside;
  const T below = larger(smaller(high, -bound_y) - low, T(0));
  const T above = larger(high - larger(low, bound_y), T(0));
  const T within = (high_inside - low_inside) * T(0.5) * (low_inside + high_inside);
  return (stop - start) * (((above - below) * bound_y + within) / (high - low));
}

// Whether two footprints may overlap: finite, with an area, and with circles that meet.
template <class T>
__device__ inline bool near(const Box<T>& a, const Box<T>& b) {
  const T east = b.x - a.x, north = b.y - a.y;
  const T reach = T(0.5) * ((a.l + a.w) + (b.l + b.w));
  return a.l > 0 && a.w > 0 && b.l > 0 && b.w > 0 && east * east + north * north <= reach * reach;
}

// Whether a gives the frame, so that (a, b) and (b, a) are computed alike: the smaller; then any
// fixed order.
template <class T>
__device__ inline bool goes_first(const Box<T>& a, const Box<T>& b) {
  if (a.area() != b.area()) return a.area() < b.area();
  if (a.x != b.x) return a.x < b.x;
  if (a.y != b.y) return a.y < b.y;
  return a.l != b.l ? a.l < b.l : a.yaw <= b.yaw;
}

// Area that two boxes share, seen from above: in the frame of one, |x| <= X and |y| <= Y, the sum
// over the edges of the other of -integral of clamp(y, -Y, Y) dx within |x| <= X. Every edge's
// share is a continuous function of its ends, so rounding decides no case.
template <class T>
__device__ inline T footprint_overlap(const Box<T>& frame, const Box<T>& other) {
  const T east = other.x - frame.x, north = other.y - frame.y;
  const T c = cosine(frame.yaw), s = sine(frame.yaw);
  const T x = c * east + s * north, y = c * north - s * east;
  const T turn_c = cosine(other.yaw - frame.yaw), turn_s = sine(other.yaw - frame.yaw);
  const T along_x = T(0.5) * other.l * turn_c, along_y = T(0.5) * other.l * turn_s;
  const T across_x = T(-0.5) * other.w * turn_s, across_y = T(0.5) * other.w * turn_c;
  const T corner_x[4] = {x + along_x + across_x, x - along_x + across_x, x - along_x - across_x,
                         x + along_x - across_x};
  const T corner_y[4] = {y + along_y + across_y, y - along_y + across_y, y - along_y - across_y,
                         y + along_y - across_y};
  T integral = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int next = (k + 1) % 4;
    integral += edge_share(corner_x[k], corner_y[k], corner_x[next], corner_y[next],
                           T(0.5) * frame.l, T(0.5) * frame.w);
  }
  return -integral > NOISE<T> * frame.area() ? smaller(-integral, frame.area()) : T(0);
}

// Intersection over union of footprints, or of volumes; in [0, 1].
template <bool VOLUME, class T>
__device__ inline T iou(const Box<T>& one, const Box<T>& two) {
  if (!near(one, two)) return 0;
  const bool in_order = goes_first(one, two);
  const Box<T> a = in_order ? one : two, b = in_order ? two : one;
  T shared = footprint_overlap(a, b), size = a.area(), other = b.area();
  if (VOLUME) {
    const T up = b.z - a.z, half = T(0.5) * a.h, other_half = T(0.5) * b.h;
    shared *= larger(smaller(half, up + other_half) - larger(-half, up - other_half), T(0));
    size *= a.h;
    other *= b.h;
  }
  if (!(shared > 0)) return 0;
  const T value = shared / (size + other - shared);
  return value > 0 ? smaller(value, T(1)) : T(0);
}

// out (count, num_others). Grid: x over others, y strides over boxes.
template <class T, bool VOLUME>
__global__ void __launch_bounds__(BOX_THREADS)
    box_iou(const T* __restrict__ boxes, const T* __restrict__ others, T* __restrict__ out,
            int64_t count, int64_t num_others) {
  const int64_t column = global_thread();
  if (column >= num_others) return;
  const Box<T> other(others + column * BOX_NUMBERS);
  for (int64_t row = blockIdx.y; row < count; row += gridDim.y)
    out[row * num_others + column] = iou<VOLUME>(Box<T>(boxes + row * BOX_NUMBERS), other);
}

template <class T>
struct OverlapAbove {
  static constexpr int NUMBERS = BOX_NUMBERS;
  Box<T> box;
  T limit;
  __device__ OverlapAbove(const T* row, T threshold) : box(row), limit(threshold) {}
  __device__ bool suppresses(const T* row) const { return iou<false>(box, Box<T>(row)) > limit; }
};

template <class T>
struct CentreWithin {
  static constexpr int NUMBERS = 2;
  T x, y, limit;
  __device__ CentreWithin(const T* row, T radius) : x(row[0]), y(row[1]), limit(radius * radius) {}
  __device__ bool suppresses(const T* row) const {
    const T east = row[0] - x, north = row[1] - y;
    return east * east + north * north <= limit;
  }
};

// Rows are in order of their score. Bit k of word w of masks[row] (words = ceil(count / 32)): `row`
// suppresses row 32 w + k, which comes after it. A warp makes a word; words before the row's own
// are not written. Grid: x over words, y strides over rows. limit (1,) holds the threshold or
// radius.
template <class T, template <class> class Test>
__global__ void __launch_bounds__(BOX_THREADS)
    suppression_masks(const T* __restrict__ rows, const int64_t* __restrict__ groups,
                      const T* __restrict__ limit, uint32_t* __restrict__ masks, int64_t count,
                      int64_t words) {
  const int lane = static_cast<int>(threadIdx.x) % WARP;
  const int64_t word = global_thread() / WARP;
  const int64_t later = word * WARP + lane;
  if (word >= words) return;
  for (int64_t row = blockIdx.y; row < min(count, (word + 1) * WARP); row += gridDim.y) {
    bool hit = false;
    if (later < count && later > row && (groups == nullptr || groups[later] == groups[row]))
      hit = Test<T>(rows + row * Test<T>::NUMBERS, *limit)
                .suppresses(rows + later * Test<T>::NUMBERS);
    const uint32_t mask = __ballot_sync(ALL_LANES, hit);
    if (lane == 0) masks[row * words + word] = mask;
  }
}

// keep[row] = no kept row before it suppresses it. One block: it settles 32 rows at a time, the
// first warp one after the other among themselves, then all threads mark what the kept ones
// suppress further on. Shared memory: `words` words of suppressed rows and one of kept ones.
__global__ void __launch_bounds__(SETTLE_THREADS)
    settle_suppression(const uint32_t* __restrict__ masks, bool* __restrict__ keep, int64_t count,
                       int64_t words) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  uint32_t* const suppressed = reinterpret_cast<uint32_t*>(shared_memory);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int64_t word = thread; word < words; word += threads) suppressed[word] = 0;
  __syncthreads();

  uint32_t own = thread < min(static_cast<int64_t>(WARP), count) ? masks[thread * words] : 0;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t first = word * WARP;
    if (thread < WARP) {
      const int64_t row = first + thread;
      uint32_t gone = suppressed[word];
#pragma unroll
      for (int k = 0; k < WARP; ++k) {
        const uint32_t mask = __shfl_sync(ALL_LANES, own, k);
        if (!(gone >> k & 1)) gone |= mask;
      }
      if (row < count) keep[row] = !(gone >> thread & 1);
      if (thread == 0) suppressed[words] = ~gone;
      // Read ahead, while the others mark.
      own = row + WARP < count ? masks[(row + WARP) * words + word + 1] : 0;
    }
    __syncthreads();
    const uint32_t kept = suppressed[words];
    for (int64_t later = word + 1 + thread; later < words; later += threads) {
      uint32_t gone = suppressed[later];
#pragma unroll
      for (int k = 0; k < WARP; ++k)
        if ((kept >> k & 1) && first + k < count) gone |= masks[(first + k) * words + later];
      suppressed[later] = gone;
    }
    __syncthreads();
  }
}

// What a point is tested against: x, y, z, l / 2, w / 2, h / 2, cos yaw, sin yaw.
constexpr int TEST_NUMBERS = 8;

template <class T>
__device__ inline void prepare_box(const T* __restrict__ boxes, int64_t box, T* to) {
  const Box<T> from(boxes + box * BOX_NUMBERS);
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = T(0.5) * from.l;
  to[4] = T(0.5) * from.w;
  to[5] = T(0.5) * from.h;
  to[6] = cosine(from.yaw);
  to[7] = sine(from.yaw);
}

template <class T>
__device__ inline bool contains(const T* box, T x, T y, T z) {
  const T east = x - box[0], north = y - box[1], c = box[6], s = box[7];
  return magnitude(c * east + s * north) <= box[3] && magnitude(c * north - s * east) <= box[4] &&
         magnitude(z - box[2]) <= box[5];
}

// The lowest box that holds each point, or -1. Shared memory: a tile of `tile` prepared boxes.
template <class T>
__global__ void __launch_bounds__(BOX_THREADS)
    points_in_boxes(const T* __restrict__ points, const T* __restrict__ boxes,
                    int64_t* __restrict__ out, int64_t num_points, int64_t num_boxes,
                    int64_t tile) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  T* const prepared = reinterpret_cast<T*>(shared_memory);
  const int64_t point = global_thread();
  T x = 0, y = 0, z = 0;
  if (point < num_points) {
    x = points[point * 3];
    y = points[point * 3 + 1];
    z = points[point * 3 + 2];
  }
  int64_t found = -1;
  for (int64_t first = 0; first < num_boxes; first += tile) {
    const int count = static_cast<int>(min(tile, num_boxes - first));
    __syncthreads();
    for (int box = static_cast<int>(threadIdx.x); box < count; box += blockDim.x)
      prepare_box(boxes, first + box, prepared + box * TEST_NUMBERS);
    __syncthreads();
    for (int box = 0; box < count && found < 0; ++box)
      if (contains(prepared + box * TEST_NUMBERS, x, y, z)) found = first + box;
  }
  if (point < num_points) out[point] = found;
}

// out (num_points, num_boxes). Threads along x take one box each, blocks along y stride over
// points.
template <class T>
__global__ void __launch_bounds__(BOX_THREADS)
    points_in_boxes_all(const T* __restrict__ points, const T* __restrict__ boxes,
                        bool* __restrict__ out, int64_t num_points, int64_t num_boxes) {
  const int64_t box = global_thread();
  if (box >= num_boxes) return;
  T prepared[TEST_NUMBERS];
  prepare_box(boxes, box, prepared);
  for (int64_t point = blockIdx.y; point < num_points; point += gridDim.y)
    out[point * num_boxes + box] =
        contains(prepared, points[point * 3], points[point * 3 + 1], points[point * 3 + 2]);
}

}  // namespace pointlib
