// Stands for NVIDIA's driver (libcuda.so.1) where there is no GPU: accepts what cuda.core asks, and
// remembers what matters about it in a log. Three devices: capability 9.0, 13.0 (newer than any)
// and 7.0 (too old).

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

namespace {

enum Status { SUCCESS = 0, NOT_FOUND = 500 };
constexpr int CAPABILITIES[] = {9, 13, 7};
constexpr uintptr_t CONTEXTS = 0x1000;  // the primary context of device d is this + d

struct LaunchConfig {  // the beginning of CUlaunchConfig
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
};

std::string lines;
std::string failing;
int failure = SUCCESS;
thread_local void* current = nullptr;
thread_local int capture_mode = 0;  // global

template <class... Values>
void note(const char* format, Values... values) {
  char line[256];
  std::snprintf(line, sizeof line, format, values...);
  lines += line;
  lines += '\n';
}

int result_of(const char* name) { return failing == name ? failure : SUCCESS; }

int device_of(void* context) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(context) - CONTEXTS);
}

int accept() { return SUCCESS; }
int init(unsigned) { return SUCCESS; }
int driver_version(int* version) { return *version = 13090, SUCCESS; }
int device_count(int* count) { return *count = 3, SUCCESS; }
int device_get(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
int device_attribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 16:
      *value = 132;
      break;  // multiprocessors
    case 75:
      *value = CAPABILITIES[device];
      break;
    case 76:
      *value = 0;
      break;  // minor capability
    case 97:
      *value = 232448;
      break;  // shared memory of a block, at most
    default:
      *value = 1;
  }
  return SUCCESS;
}
int retain(void** context, int device) {
  return *context = reinterpret_cast<void*>(CONTEXTS + device), SUCCESS;
}
int get_current(void** context) { return *context = current, SUCCESS; }
int set_current(void* context) {
  current = context;
  note("context %d", device_of(context));
  return SUCCESS;
}
int current_device(int* device) { return *device = device_of(current), SUCCESS; }
int exchange_mode(int* mode) {
  const int before = capture_mode;
  capture_mode = *mode;
  *mode = before;
  return SUCCESS;
}
int load(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
  const bool elf = std::memcmp(code, "\177ELF", 4) == 0;
  note("load %s capture %d", elf ? "cubin" : "ptx", capture_mode);
  return *library = reinterpret_cast<void*>(0x2000), result_of("cuLibraryLoadData");
}
int get_kernel(void** kernel, void*, const char* symbol) {
  note("kernel %s", symbol);
  return *kernel = reinterpret_cast<void*>(0x3000), SUCCESS;
}
int get_attribute(int* value, int, void*, int) { return *value = 16, SUCCESS; }
int set_attribute(int attribute, int value, void*, int device) {
  note("attribute %d = %d on %d", attribute, value, device);
  return result_of("cuKernelSetAttribute");
}
int launch(const LaunchConfig* config, void*, void** arguments, void**) {
  const unsigned *g = config->grid, *b = config->block;
  const auto integer = [&](int i) { return *static_cast<const long long*>(arguments[i]); };
  note("launch grid %u %u %u block %u %u %u shared %u stream %p on %d: %llx %lld %lld %g", g[0],
       g[1], g[2], b[0], b[1], b[2], config->shared_bytes, config->stream, device_of(current),
       integer(0), integer(1), integer(2), *static_cast<const float*>(arguments[3]));
  return result_of("cuLaunchKernelEx");
}
int error_name(int status, const char** name) {
  switch (status) {
    case SUCCESS:
      *name = "CUDA_SUCCESS";
      break;
    case 1:
      *name = "CUDA_ERROR_INVALID_VALUE";
      break;
    case 2:
      *name = "CUDA_ERROR_OUT_OF_MEMORY";
      break;
    case 222:
      *name = "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
      break;
    case 700:
      *name = "CUDA_ERROR_ILLEGAL_ADDRESS";
      break;
    default:
      *name = "CUDA_ERROR_UNKNOWN";
  }
  return SUCCESS;
}

}  // namespace

extern "C" {

int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
  struct Entry {
    const char* name;
    void* function;
  };
#define ENTRY(name, function)               \
  {                                         \
    name, reinterpret_cast<void*>(function) \
  }
  static const Entry entries[] = {
      ENTRY("cuInit", init),
      ENTRY("cuDriverGetVersion", driver_version),
      ENTRY("cuDeviceGetCount", device_count),
      ENTRY("cuDeviceGet", device_get),
      ENTRY("cuDeviceGetAttribute", device_attribute),
      ENTRY("cuDevicePrimaryCtxRetain", retain),
      ENTRY("cuCtxGetCurrent", get_current),
      ENTRY("cuCtxSetCurrent", set_current),
      ENTRY("cuCtxGetDevice", current_device),
      ENTRY("cuThreadExchangeStreamCaptureMode", exchange_mode),
      ENTRY("cuLibraryLoadData", load),
      ENTRY("cuLibraryGetKernel", get_kernel),
      ENTRY("cuKernelGetAttribute", get_attribute),
      ENTRY("cuKernelSetAttribute", set_attribute),
      ENTRY("cuLaunchKernelEx", launch),
      ENTRY("cuGetErrorName", error_name),
      ENTRY("cuGetErrorString", error_name),
      ENTRY("cuGetProcAddress", cuGetProcAddress_v2),
  };
#undef ENTRY
  if (status) *status = 0;
  *function = reinterpret_cast<void*>(accept);
  for (const Entry& entry : entries) {
    if (!std::strcmp(entry.name, name)) *function = entry.function;
  }
  return SUCCESS;
}

int cuInit(unsigned flags) { return init(flags); }
int cuGetExportTable(const void** table, const void*) { return *table = nullptr, NOT_FOUND; }

// For the tests.
const char* fake_log() { return lines.c_str(); }
void fake_reset() { lines.clear(), failing.clear(); }
void fake_failure(const char* name, int status) { failing = name, failure = status; }
}
