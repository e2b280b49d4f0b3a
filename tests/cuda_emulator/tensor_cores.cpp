// Tensor-core products: the lanes' fragments are gathered into whole matrices by the layouts of the
// PTX ISA, multiplied with sums in float (or int, exactly), and dealt out again.
#include "tensor_cores.h"

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace emulator {

namespace {

// The element types: how many a register holds, and the value of one.
struct Half {
  static constexpr int PER_REGISTER = 2;
  static float value(unsigned r, int i) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(r >> 16 * i)));
  }
};
struct Bfloat16 {
  static constexpr int PER_REGISTER = 2;
  static float value(unsigned r, int i) {
    return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(r >> 16 * i)));
  }
};
struct Tf32 {
  static constexpr int PER_REGISTER = 1;
  static float value(unsigned r, int) { return __uint_as_float(r & 0xffffe000u); }
};
struct Int8 {
  static constexpr int PER_REGISTER = 4;
  static int value(unsigned r, int i) { return static_cast<signed char>(r >> 8 * i); }
};

// d += a b for M x 8 x K elements. A register of lane 4 g + t holds PER neighbours along k of row
// (of a) or column (of b) g, from k = PER t on; a's next register is 8 rows further, then both a's
// and b's are 4 PER further along k.
template <class Element, class Sum, int M, int K>
void multiply(Exchange& shown) {
  constexpr int PER = Element::PER_REGISTER, HALVES = M / 8, STEPS = K / (4 * PER);
  using Lane = Fragments<Sum, 2 * HALVES, HALVES * STEPS, STEPS>;
  using Row [[gnu::vector_size(8 * sizeof(Sum))]] = Sum;
  Sum a[M][K];
  Row b[K], d[M];
  for (int lane = 0; lane < LANES; ++lane) {
    const Lane& held = shown.at<Lane>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int step = 0; step < STEPS; ++step) {
      for (int i = 0; i < PER; ++i) {
        const int k = 4 * PER * step + PER * t + i;
        b[k][g] = Element::value(held.b[step], i);
        for (int half = 0; half < HALVES; ++half) {
          a[g + 8 * half][k] = Element::value(held.a[HALVES * step + half], i);
        }
      }
    }
    for (int i = 0; i < 2 * HALVES; ++i) d[g + i / 2 * 8][2 * t + i % 2] = held.d[i];
  }
  for (int row = 0; row < M; ++row) {
    for (int k = 0; k < K; ++k) d[row] += a[row][k] * b[k];
  }
  for (int lane = 0; lane < LANES; ++lane) {
    Lane& held = shown.at<Lane>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2 * HALVES; ++i) held.d[i] = d[g + i / 2 * 8][2 * t + i % 2];
  }
}

}  // namespace

void multiply_f16_k8(Exchange& shown) { multiply<Half, float, 16, 8>(shown); }
void multiply_f16(Exchange& shown) { multiply<Half, float, 16, 16>(shown); }
void multiply_bf16(Exchange& shown) { multiply<Bfloat16, float, 16, 16>(shown); }
void multiply_tf32(Exchange& shown) { multiply<Tf32, float, 16, 8>(shown); }
void multiply_s8_k16(Exchange& shown) { multiply<Int8, int, 8, 16>(shown); }
void multiply_s8(Exchange& shown) { multiply<Int8, int, 16, 32>(shown); }

}  // namespace emulator
