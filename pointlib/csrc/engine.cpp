// Which instruction sets this library holds, which of them this processor has, and which one is in
// use.
#include "engine.h"

#include <atomic>
#include <cstring>
#include <string>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
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

struct InstructionSet {
  const char* name;
  const Kernels& (*table)();
  bool (*present)();
};

bool always() { return true; }

#if defined(__x86_64__)
bool leaf7(unsigned subleaf, unsigned* eax, unsigned* ebx, unsigned* ecx, unsigned* edx) {
  return __get_cpuid_count(7, subleaf, eax, ebx, ecx, edx) != 0;
}
// __builtin_cpu_supports also asks the operating system whether it saves the wider registers.
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
[[maybe_unused]] bool has_avx512_vnni() {
  unsigned a, b, c, d;
  return has_avx512() && leaf7(0, &a, &b, &c, &d) && (c >> 11 & 1);
}
[[maybe_unused]] bool has_avx512_bf16() {
  unsigned a, b, c, d;
  return has_avx512_vnni() && leaf7(1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#ifdef POINTLIB_WITH_AMX
// Linux gives a process the tile registers when it asks (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
// Threads inherit the permission, so it is asked for when the library is loaded, before there are
// any.
bool tiles_permitted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
bool has_amx() {
  unsigned a, b, c, d;
  const bool tiles = has_avx512_bf16() && leaf7(0, &a, &b, &c, &d) && (d >> 22 & 1) &&
                     (d >> 24 & 1) && (d >> 25 & 1);
  return tiles && tiles_permitted();
}
#endif
#endif

// Best first.
const InstructionSet SETS[] = {
#ifdef POINTLIB_WITH_AMX
    {"amx", amx::table, has_amx},
#endif
#ifdef POINTLIB_WITH_AVX512_BF16
    {"avx512_bf16", avx512_bf16::table, has_avx512_bf16},
#endif
#ifdef POINTLIB_WITH_AVX512_VNNI
    {"avx512_vnni", avx512_vnni::table, has_avx512_vnni},
#endif
#ifdef POINTLIB_WITH_AVX512
    {"avx512", avx512::table, has_avx512},
#endif
#ifdef POINTLIB_WITH_AVX2
    {"avx2", avx2::table, has_avx2},
#endif
    {"generic", generic::table, always},
};

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
    for (const InstructionSet& set : SETS) {
      if (set.present()) all += (all.empty() ? "" : " ") + std::string(set.name);
    }
    return all;
  }();
  return names.c_str();
}

// Use one of pl_instruction_sets(), for the whole process; the Python side does so once, when it
// loads the library.
POINTLIB_API int64_t pl_use(const char* name) {
  for (const InstructionSet& set : SETS) {
    if (std::strcmp(set.name, name) == 0 && set.present()) {
      chosen.store(&set.table(), std::memory_order_relaxed);
      return 0;
    }
  }
  return fail("pl_use: name must be one of pl_instruction_sets()");
}
