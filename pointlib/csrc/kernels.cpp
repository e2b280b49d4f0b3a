// The kernel table of one instruction set. setup.py compiles this file once for each, with its
// flags and with POINTLIB_SET naming it. No standard container is used here: an inline function of
// the library compiled with wide instructions could replace the plain one that other files call.
#include "kernels.h"

#include <utility>

namespace pointlib::POINTLIB_SET {

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, REGISTERS = 32, PANEL_VECTORS = 4;
#elif defined(__AVX__)
constexpr int WIDTH = 8, REGISTERS = 16, PANEL_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, REGISTERS = 32, PANEL_VECTORS = 4;
#else
constexpr int WIDTH = 4, REGISTERS = 16, PANEL_VECTORS = 2;
#endif

typedef float Float __attribute__((vector_size(4 * WIDTH)));
typedef float UnalignedFloat __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

inline Float load(const float* from) { return *reinterpret_cast<const UnalignedFloat*>(from); }
inline void store(float* to, Float value) { *reinterpret_cast<UnalignedFloat*>(to) = value; }
inline Float broadcast(float value) { return value - Float{}; }

#include "kernels_f32.inc"

#define POINTLIB_TEXT(x) #x
#define POINTLIB_NAME(x) POINTLIB_TEXT(x)
const Kernels TABLE = {
    POINTLIB_NAME(POINTLIB_SET), WIDTH, pack_f32, multiply_f32, finish_f32, nullptr};

}  // namespace

const Kernels& table() { return TABLE; }

}  // namespace pointlib::POINTLIB_SET
