// Neighbours in batches of clouds of points: farthest point sampling, ball query and k nearest
// neighbours. Coordinates (B, 3, N) are planes: x of all points of a cloud, then y, then z.
//
// A squared distance is fma(dz, dz, fma(dy, dy, dx * dx)), as on the CPU, and equal ones are
// ordered by the points' numbers, so that both find the same neighbours. One that is not finite is
// nobody's.
#include "types.cuh"

namespace pointlib {

constexpr int TILE = 1024;  // points in shared memory at once
constexpr int64_t ABSENT = 0x7fffffffffffffffll;

__device__ inline float infinity() { return __int_as_float(0x7f800000); }
__device__ inline float not_a_number() { return __int_as_float(0x7fffffff); }
__device__ inline int lane_number() { return static_cast<int>(threadIdx.x) % WARP; }
__device__ inline int warp_number() { return static_cast<int>(threadIdx.x) / WARP; }

struct Point {
  float x, y, z;
};

__device__ inline float squared_distance(const Point& a, const Point& b) {
  const float dx = a.x - b.x, dy = a.y - b.y, dz = a.z - b.z;
  return fmaf(dz, dz, fmaf(dy, dy, dx * dx));
}

// Planes of a cloud.
struct Cloud {
  const float *x, *y, *z;

  __device__ Cloud(const float* clouds, int64_t cloud, int64_t count)
      : x(clouds + cloud * 3 * count), y(x + count), z(y + count) {}
  __device__ Point at(int point) const { return {x[point], y[point], z[point]}; }
  __device__ bool finite(int point) const {  // NaN compares as false
    const float limit = __int_as_float(0x7f7fffff);
    const Point p = at(point);
    return fabsf(p.x) <= limit && fabsf(p.y) <= limit && fabsf(p.z) <= limit;
  }
};

// Farthest point sampling: one block a cloud

// Of two candidates the farther has the larger key, of equally far ones the lower number; below 0,
// none is 0.
__device__ inline uint64_t farthest_key(float distance, int point) {
  if (distance < 0) return 0;
  return static_cast<uint64_t>(__float_as_uint(distance)) << 32 |
         (0xffffffffu - static_cast<uint32_t>(point));
}
__device__ inline int point_of(uint64_t key) {
  return key == 0 ? 0 : static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

template <int LANES>
__device__ inline uint64_t largest_of_lanes(uint64_t key) {
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2)
    key = max(key, __shfl_xor_sync(ALL_LANES, key, apart));
  return key;
}

// The largest key of the block, to every thread. `slots`, one a warp, must not be those of the call
// before.
template <int THREADS>
__device__ inline uint64_t largest_of_block(uint64_t key, uint64_t* slots) {
  constexpr int WARPS = THREADS / WARP;
  key = largest_of_lanes<WARP>(key);
  if (lane_number() == 0) slots[warp_number()] = key;
  __syncthreads();
  return largest_of_lanes<WARPS>(slots[lane_number() % WARPS]);
}

// Up to THREADS * POINTS points, in registers. Shared memory: 2 * THREADS / WARP keys.
template <int THREADS, int POINTS>
__global__ void __launch_bounds__(THREADS, 1)
    farthest_points(const float* __restrict__ points, int64_t count, int64_t samples,
                    int64_t* __restrict__ out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  uint64_t* slots = reinterpret_cast<uint64_t*>(shared_memory);
  const int thread = static_cast<int>(threadIdx.x);
  const Cloud cloud(points, blockIdx.x, count);
  out += blockIdx.x * samples;

  Point point[POINTS];
  float nearest[POINTS];  // squared distance to what is chosen; -1 is never chosen
#pragma unroll
  for (int i = 0; i < POINTS; i++) {
    const int number = i * THREADS + thread;
    point[i] = {0, 0, 0};
    nearest[i] = -1;
    if (number < count) {
      point[i] = cloud.at(number);
      if (cloud.finite(number)) nearest[i] = infinity();
    }
  }

  int chosen = 0;
  for (int64_t sample = 0; sample < samples; sample++) {
    if (thread == 0) out[sample] = chosen;
    const Point last = cloud.at(chosen);
    float farthest = -1;
    int number = 0;
#pragma unroll
    for (int i = 0; i < POINTS; i++) {
      nearest[i] = fminf(nearest[i], squared_distance(point[i], last));  // keeps it beside a NaN
      if (nearest[i] > farthest) {
        farthest = nearest[i];
        number = i * THREADS + thread;
      }
    }
    const uint64_t key = farthest_key(farthest, number);
    chosen = point_of(largest_of_block<THREADS>(key, slots + sample % 2 * (THREADS / WARP)));
  }
}

// Any number of points, read again for each sample. `distances` (B, count) is scratch; if it is
// null, it is in shared memory, behind the keys.
template <int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    farthest_points_streamed(const float* __restrict__ points, int64_t count, int64_t samples,
                             float* distances, int64_t* __restrict__ out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  uint64_t* slots = reinterpret_cast<uint64_t*>(shared_memory);
  float* nearest = distances != nullptr ? distances + blockIdx.x * count
                                        : reinterpret_cast<float*>(slots + 2 * (THREADS / WARP));
  const int thread = static_cast<int>(threadIdx.x), points_of_cloud = static_cast<int>(count);
  const Cloud cloud(points, blockIdx.x, count);
  out += blockIdx.x * samples;
  for (int i = thread; i < points_of_cloud; i += THREADS)
    nearest[i] = cloud.finite(i) ? infinity() : -1;  // each thread reads only what it wrote

  int chosen = 0;
  for (int64_t sample = 0; sample < samples; sample++) {
    if (thread == 0) out[sample] = chosen;
    const Point last = cloud.at(chosen);
    float farthest = -1;
    int number = 0;
#pragma unroll 2
    for (int i = thread; i < points_of_cloud; i += THREADS) {
      const float before = nearest[i], now = fminf(before, squared_distance(cloud.at(i), last));
      if (now < before) nearest[i] = now;
      if (now > farthest) {
        farthest = now;
        number = i;
      }
    }
    const uint64_t key = farthest_key(farthest, number);
    chosen = point_of(largest_of_block<THREADS>(key, slots + sample % 2 * (THREADS / WARP)));
  }
}

// Search: points pass through shared memory, tile by tile

// Planes of TILE points, filled up with NaN.
struct Tile {
  float* x;

  __device__ explicit Tile(unsigned char* memory) : x(reinterpret_cast<float*>(memory)) {}
  __device__ Point at(int i) const { return {x[i], x[TILE + i], x[2 * TILE + i]}; }
  __device__ void fill(const Cloud& cloud, int first, int count) const {
    for (int i = static_cast<int>(threadIdx.x); i < TILE; i += static_cast<int>(blockDim.x)) {
      const bool given = i < count - first;
      x[i] = given ? cloud.x[first + i] : not_a_number();
      x[TILE + i] = given ? cloud.y[first + i] : 0;
      x[2 * TILE + i] = given ? cloud.z[first + i] : 0;
    }
  }
};

// The centers of a block: blocks of one cloud follow each other.
struct Centers {
  int64_t cloud;
  int first;

  __device__ Centers(int64_t num_centers, int of_block) {
    const int64_t blocks = (num_centers + of_block - 1) / of_block;
    cloud = blockIdx.x / blocks;
    first = static_cast<int>((blockIdx.x - cloud * blocks) * of_block);
  }
};

// out (B, num_centers, most): the first points of less than radius2 to each center, in their order,
// the first of them again where there are fewer, -1 where there is none. A warp looks after CENTERS
// centers at once.
template <int CENTERS>
__global__ void __launch_bounds__(256, 2)
    ball_query(const float* __restrict__ centers, const float* __restrict__ points,
               int64_t num_centers, int64_t num_points, float radius2, int64_t most,
               int64_t* __restrict__ out) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Tile tile(shared_memory);
  const Centers block(num_centers, static_cast<int>(blockDim.x) / WARP * CENTERS);
  const Cloud from(centers, block.cloud, num_centers), cloud(points, block.cloud, num_points);
  const int lane = lane_number(), count = static_cast<int>(num_points);
  const unsigned lower_lanes = (1u << lane) - 1;
  const int mine = block.first + warp_number() * CENTERS;
  const int64_t row = block.cloud * num_centers + mine;

  Point center[CENTERS];
  int64_t found[CENTERS];
  int first_found[CENTERS];
  int open = 0;  // centers that still look for points
#pragma unroll
  for (int c = 0; c < CENTERS; c++) {
    const bool given = mine + c < num_centers && most > 0;
    center[c] = given ? from.at(mine + c) : Point{not_a_number(), 0, 0};
    found[c] = given ? 0 : most;
    first_found[c] = -1;
    open += given;
  }
  for (int first = 0; first < count; first += TILE) {
    if (__syncthreads_and(open == 0)) break;
    tile.fill(cloud, first, count);
    __syncthreads();
    const int filled = min(TILE, count - first);
    for (int i = lane; open > 0 && i - lane < filled; i += WARP) {
      const Point point = tile.at(i);
#pragma unroll
      for (int c = 0; c < CENTERS; c++) {
        const bool near = squared_distance(point, center[c]) < radius2;
        const unsigned all_near = __ballot_sync(ALL_LANES, near);
        if (all_near == 0 || found[c] >= most) continue;
        if (found[c] == 0) first_found[c] = first + i - lane + __ffs(all_near) - 1;
        const int64_t place = found[c] + __popc(all_near & lower_lanes);
        if (near && place < most) out[(row + c) * most + place] = first + i;
        found[c] += __popc(all_near);
        if (found[c] >= most) open--;
      }
    }
  }
#pragma unroll
  for (int c = 0; c < CENTERS; c++)
    if (mine + c < num_centers)
      for (int64_t place = found[c] + lane; place < most; place += WARP)
        out[(row + c) * most + place] = first_found[c];
}

// index and dist2 (B, num_queries, k) with k <= 3: the nearest points. A thread has a query.
__global__ void __launch_bounds__(128)
    three_nearest(const float* __restrict__ queries, const float* __restrict__ points,
                  int64_t num_queries, int64_t num_points, int64_t k, int64_t* __restrict__ index,
                  float* __restrict__ dist2) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  float4* tile = reinterpret_cast<float4*>(shared_memory);  // all threads read the same point
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const Centers block(num_queries, threads);
  const Cloud from(queries, block.cloud, num_queries), cloud(points, block.cloud, num_points);
  const int query = block.first + thread, count = static_cast<int>(num_points);
  const bool active = query < num_queries;
  const Point center = active ? from.at(query) : Point{0, 0, 0};

  float best[3] = {infinity(), infinity(), infinity()};
  int number[3] = {-1, -1, -1};
  for (int first = 0; first < count; first += TILE) {
    __syncthreads();
    const int filled = min(TILE, count - first);
    for (int i = thread; i < filled; i += threads) {
      const Point p = cloud.at(first + i);
      tile[i] = make_float4(p.x, p.y, p.z, 0);
    }
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < filled; i++) {
      const float4 p = tile[i];
      const float distance = squared_distance({p.x, p.y, p.z}, center);
      if (!(distance < best[2])) continue;
      const bool second = distance < best[1], nearest = distance < best[0];
      best[2] = second ? best[1] : distance;
      number[2] = second ? number[1] : first + i;
      best[1] = nearest ? best[0] : second ? distance : best[1];
      number[1] = nearest ? number[0] : second ? first + i : number[1];
      best[0] = nearest ? distance : best[0];
      number[0] = nearest ? first + i : number[0];
    }
  }
  if (!active) return;
  const int64_t at = (block.cloud * num_queries + query) * k;
#pragma unroll
  for (int i = 0; i < 3; i++)
    if (i < k) {
      index[at + i] = number[i];
      dist2[at + i] = best[i];
    }
}

// Candidates by distance and then by number.
__device__ inline int64_t nearest_key(float distance, int point) {
  if (!(distance < infinity())) return ABSENT;
  return static_cast<int64_t>(__float_as_uint(distance)) << 32 | point;
}

// The 32 * ROWS smallest keys of a warp, ascending: place 32 * r + lane is in keys[r] of that lane.
template <int ROWS>
struct SortedKeys {
  int64_t keys[ROWS];

  __device__ SortedKeys() {
#pragma unroll
    for (int r = 0; r < ROWS; r++) keys[r] = ABSENT;
  }
  __device__ void insert(int64_t key) {
#pragma unroll
    for (int r = ROWS - 1; r >= 0; r--) {
      int64_t before = __shfl_up_sync(ALL_LANES, keys[r], 1);
      const int64_t carried = r > 0 ? __shfl_sync(ALL_LANES, keys[r - (r > 0)], WARP - 1) : -1;
      if (lane_number() == 0) before = carried;
      keys[r] = min(keys[r], max(before, key));
    }
  }
};

// Columns [offset, offset + wanted) of index and dist2 (B, num_queries, k): the nearest points that
// come after what stands in column offset - 1. A warp has a query; WARP * (ROWS - 1) < wanted <=
// WARP * ROWS.
template <int ROWS>
__global__ void __launch_bounds__(256, 2)
    nearest_points(const float* __restrict__ queries, const float* __restrict__ points,
                   int64_t num_queries, int64_t num_points, int64_t k, int64_t offset,
                   int64_t wanted, int64_t* index, float* dist2) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Tile tile(shared_memory);
  const Centers block(num_queries, static_cast<int>(blockDim.x) / WARP);
  const Cloud from(queries, block.cloud, num_queries), cloud(points, block.cloud, num_points);
  const int lane = lane_number(), count = static_cast<int>(num_points);
  const int query = block.first + warp_number();
  const bool active = query < num_queries;  // of the whole warp
  const Point center = active ? from.at(query) : Point{not_a_number(), 0, 0};
  index += (block.cloud * num_queries + query) * k + offset;
  dist2 += (block.cloud * num_queries + query) * k + offset;

  int64_t after = -1;
  if (active && offset > 0)
    after = index[-1] < 0 ? ABSENT : nearest_key(dist2[-1], static_cast<int>(index[-1]));
  const int last_lane = static_cast<int>(wanted - 1) % WARP;
  SortedKeys<ROWS> nearest;
  int64_t last = ABSENT;  // the worst of those wanted
  for (int first = 0; first < count; first += TILE) {
    __syncthreads();
    tile.fill(cloud, first, count);
    __syncthreads();
    const int filled = min(TILE, count - first);
    for (int i = lane; i - lane < filled; i += WARP) {
      int64_t key = nearest_key(squared_distance(tile.at(i), center), first + i);
      if (key <= after) key = ABSENT;
      unsigned better = __ballot_sync(ALL_LANES, key < last);
      for (; better != 0; better &= better - 1) {
        const int64_t other = __shfl_sync(ALL_LANES, key, __ffs(better) - 1);
        if (other >= last) continue;
        nearest.insert(other);
        last = __shfl_sync(ALL_LANES, nearest.keys[ROWS - 1], last_lane);
      }
    }
  }
  if (!active) return;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int64_t key = nearest.keys[r];
    if (r * WARP + lane >= wanted) continue;
    index[r * WARP + lane] = key == ABSENT ? -1 : static_cast<int64_t>(static_cast<int>(key));
    dist2[r * WARP + lane] =
        key == ABSENT ? infinity() : __int_as_float(static_cast<int>(key >> 32));
  }
}

// out[i] = index[i] + cloud * num_rows for entries of clouds of `each`, -1 for -1. `inside` (unless
// null) was true, and becomes false where an entry is neither -1 nor in [0, num_rows).
__global__ void batch_rows(const int64_t* __restrict__ index, int64_t entries, int64_t each,
                           int64_t num_rows, int64_t* __restrict__ out, bool* __restrict__ inside) {
  const int64_t i = global_thread();
  if (i >= entries) return;
  const int64_t row = index[i];
  const bool good = row >= -1 && row < num_rows;
  if (!good && inside != nullptr) *inside = false;
  out[i] = row >= 0 && good ? row + i / each * num_rows : -1;
}

}  // namespace pointlib
