// Fibers: a stack per CUDA thread, and the switch between two of them. A switch costs a few
// nanoseconds because it saves the callee-saved registers only and makes no system call. It ends in
// a jump, whose target the processor predicts, rather than in a return, which it would expect
// elsewhere.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

extern "C" void emulator_switch(void** save_stack_pointer, void* load_stack_pointer);

#if defined(__x86_64__)
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
.size emulator_switch, .-emulator_switch
)");
// Six registers, the return address, and a word more, for a function starts at 8 modulo 16.
constexpr int FRAME_WORDS = 8;
constexpr int RETURN_WORD = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
constexpr int FRAME_WORDS = 20;
constexpr int RETURN_WORD = 11;  // x30
#else
#error "the emulator switches fibers on x86-64 and aarch64"
#endif

namespace emulator {

constexpr size_t STACK_BYTES = 256 << 10;  // address space; only what is touched takes memory
constexpr size_t SHIFT_BYTES = 9 * 64;
constexpr int MAX_THREADS = 1024;

// Stacks for a block of the largest size, each above a page that faults when the stack overflows.
inline char* stack_of(int thread) {
  static char* const stacks = [] {
    const size_t page = sysconf(_SC_PAGESIZE);
    const size_t bytes = MAX_THREADS * STACK_BYTES;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return static_cast<char*>(nullptr);
    for (int i = 0; i < MAX_THREADS; ++i) {
      mprotect(static_cast<char*>(memory) + i * STACK_BYTES, page, PROT_NONE);
    }
    return static_cast<char*>(memory);
  }();
  return stacks == nullptr ? nullptr : stacks + thread * STACK_BYTES;
}

inline bool is_on_stack(const void* address) {
  const auto* byte = static_cast<const char*>(address);
  return byte >= stack_of(0) && byte < stack_of(0) + MAX_THREADS * STACK_BYTES;
}

// Stack pointer of a fiber that starts in `entry` when it is first switched to.
inline void* prepare_fiber(int thread, void (*entry)()) {
  // Shifted against each other, for equal addresses modulo a power of two would share a cache set.
  char* top = stack_of(thread) + STACK_BYTES - thread * SHIFT_BYTES % (STACK_BYTES / 4);
  void** frame = reinterpret_cast<void**>(top) - FRAME_WORDS;
  for (int i = 0; i < FRAME_WORDS; ++i) frame[i] = nullptr;
  frame[RETURN_WORD] = reinterpret_cast<void*>(entry);
  return frame;
}

}  // namespace emulator
