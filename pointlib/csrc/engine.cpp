// Which instruction sets this library holds, which of them this processor has, and which one is in
// use.
#include "engine.h"

#include <atomic>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pointlib {

// setup.py defines POINTLIB_WITH_<SET> for every set that the compiler could build.
namespace generic {
const Kernels& table();
}
#ifdef POINTLIB_WITH_AVX2
namespace avx2 {
const Kernels& table();
}
#endif
#ifdef POINTLIB_WITH_AVX512
namespace avx512 {
const Kernels& table();
}
#endif
#ifdef POINTLIB_WITH_AVX512_VNNI
namespace avx512_vnni {
const Kernels& table();
}
#endif
#ifdef POINTLIB_WITH_AVX512_BF16
namespace avx512_bf16 {
const Kernels& table();
}
#endif
#ifdef POINTLIB_WITH_AMX
namespace amx {
const Kernels& table();
}
#endif

namespace {

thread_local std::string last_message;

// What the processor has and the operating system saves when it switches threads. Each set needs
// the one before it, and everything that its flags in setup.py let the compiler use.
struct Processor {
  bool avx2 = false, avx512 = false, avx512_vnni = false, avx512_bf16 = false, amx = false;
};

#if defined(__x86_64__)
// Linux gives a process the tile registers when it asks (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
// Asked for when the library is loaded: threads that start later have room for them.
[[maybe_unused]] bool tiles_permitted() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

// Registers that the operating system has enabled (XCR0).
uint64_t enabled_registers() {
  uint32_t low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

Processor inspect() {
  Processor has;
  const auto bits = [](uint64_t word, std::initializer_list<int> wanted) {
    for (int bit : wanted)
      if (!(word >> bit & 1)) return false;
    return true;
  };
  unsigned a, b, c, d;
  // Leaf 1: FMA, OSXSAVE, AVX, F16C.
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bits(c, {12, 27, 28, 29})) return has;
  const uint64_t enabled = enabled_registers();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return has;
  // xmm, ymm; then masks and both halves of zmm; then the tiles' configuration and data.
  has.avx2 = bits(enabled, {1, 2}) && bits(b, {5});
  has.avx512 = has.avx2 && bits(enabled, {5, 6, 7}) && bits(b, {16, 17, 30, 31});  // F DQ BW VL
  has.avx512_vnni = has.avx512 && bits(c, {11});
  const bool tiles = bits(enabled, {17, 18}) && bits(d, {22, 24, 25});  // AMX-BF16 -TILE -INT8
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return has;
  has.avx512_bf16 = has.avx512_vnni && bits(a, {5});
#if defined(POINTLIB_EMULATE_AMX)  // see tiles.h
  has.amx = has.avx512_bf16;
  (void)tiles;
#else
  has.amx = has.avx512_bf16 && tiles && tiles_permitted();
#endif
  return has;
}
#else
Processor inspect() { return {}; }
#endif

struct InstructionSet {
  const char* name;
  const Kernels& (*table)();
  bool present;
};

// Best first, "generic" last.
const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    [[maybe_unused]] const Processor has = inspect();
    return std::vector<InstructionSet>{
#ifdef POINTLIB_WITH_AMX
        {"amx", amx::table, has.amx},
#endif
#ifdef POINTLIB_WITH_AVX512_BF16
        {"avx512_bf16", avx512_bf16::table, has.avx512_bf16},
#endif
#ifdef POINTLIB_WITH_AVX512_VNNI
        {"avx512_vnni", avx512_vnni::table, has.avx512_vnni},
#endif
#ifdef POINTLIB_WITH_AVX512
        {"avx512", avx512::table, has.avx512},
#endif
#ifdef POINTLIB_WITH_AVX2
        {"avx2", avx2::table, has.avx2},
#endif
        {"generic", generic::table, true},
    };
  }();
  return sets;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

int64_t fail(const char* message) {
  last_message = message;
  return FAILED;
}

const Kernels& kernels() { return *chosen.load(std::memory_order_relaxed); }

}  // namespace pointlib

using namespace pointlib;

POINTLIB_API int64_t pl_abi() { return POINTLIB_ABI; }
POINTLIB_API const char* pl_source_hash() { return POINTLIB_SOURCE_HASH; }
POINTLIB_API const char* pl_last_error() { return last_message.c_str(); }

// Names of the sets that this library holds and this processor has, best first, separated by
// spaces.
POINTLIB_API const char* pl_instruction_sets() {
  static const std::string names = [] {
    std::string all;
    for (const InstructionSet& set : instruction_sets()) {
      if (set.present) all += (all.empty() ? "" : " ") + std::string(set.name);
    }
    return all;
  }();
  return names.c_str();
}

// Use one of pl_instruction_sets(), for the whole process; the Python side does so once, when it
// loads the library.
POINTLIB_API int64_t pl_use(const char* name) {
  return guarded([&]() -> int64_t {
    for (const InstructionSet& set : instruction_sets()) {
      if (set.present && std::strcmp(set.name, name) == 0) {
        chosen.store(&set.table(), std::memory_order_relaxed);
        return 0;
      }
    }
    return fail("name must be one of pl_instruction_sets()");
  });
}

// The set in use, as its own kernels name it; null before pl_use.
POINTLIB_API const char* pl_in_use() {
  const Kernels* in_use = chosen.load(std::memory_order_relaxed);
  return in_use ? in_use->name : nullptr;
}
