// What kernels do wrong, found and explained: accesses that fault, threads that never end,
// diverging barriers.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>

#include "machine.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

namespace emulator {

namespace {

constexpr int TICK = SIGVTALRM;
constexpr int CAUGHT[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, TICK};
constexpr int SECONDS_WITHOUT_SWITCH = 2;  // of processor time

struct sigaction previous_actions[NSIG];
stack_t previous_stack;
timer_t timer;
volatile bool catching = false;
pthread_t catching_thread;
unsigned long long last_switches;
int idle_ticks;

const char* file_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

void append_values(const char* format, va_list values) {
  const size_t used = strlen(machine.message);
  vsnprintf(machine.message + used, machine.message_bytes - used, format, values);
}

void append_site(const Site& site) {
  append("%s (%s:%d)", site.what, file_name(site.file), site.line);
}

// The fault's place in its library, for a debugger's line table.
void keep_program_counter(void* context, bool* is_write) {
  uintptr_t counter = 0;
  *is_write = false;
#if defined(__x86_64__)
  const auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  counter = registers[REG_RIP];
  *is_write = (registers[REG_ERR] & 2) != 0;
#elif defined(__aarch64__)
  counter = static_cast<ucontext_t*>(context)->uc_mcontext.pc;
#endif
  Dl_info library;
  if (dladdr(reinterpret_cast<void*>(counter), &library) != 0) {
    *machine.launch->program_counter = counter - reinterpret_cast<uintptr_t>(library.dli_fbase);
  }
}

void on_tick() {
  idle_ticks = machine.switches == last_switches ? idle_ticks + 1 : 0;
  last_switches = machine.switches;
  if (idle_ticks < SECONDS_WITHOUT_SWITCH) return;
  append_place();
  append("does not end: ran %d s without reaching a barrier, a collective or its end",
         SECONDS_WITHOUT_SWITCH);
  abandon();
}

void on_signal(int signal, siginfo_t* info, void* context) {
  if (!catching || !pthread_equal(pthread_self(), catching_thread)) {
    if (signal == TICK) return;
    sigaction(signal, &previous_actions[signal], nullptr);
    return;  // the instruction repeats, and what handled this signal before has it
  }
  bool is_write;
  keep_program_counter(context, &is_write);
  if (signal == TICK) return on_tick();
  append_place();
  if (signal == SIGILL || signal == SIGTRAP) {
    append("misaligned access, index outside a local array, or shift by the width or more");
  } else if (signal == SIGFPE) {
    append("integer division by zero");
  } else if (info->si_code == SI_KERNEL) {
    append("misaligned vector access, or a wild pointer");
  } else {
    append("out-of-bounds %s: ", is_write ? "write" : "access");
    append_address(info->si_addr);
  }
  abandon();
}

}  // namespace

void append(const char* format, ...) {
  va_list values;
  va_start(values, format);
  append_values(format, values);
  va_end(values);
}

void append_place() {
  append("block (%u, %u, %u), thread %d: ", blockIdx.x, blockIdx.y, blockIdx.z, machine.current);
}

void append_address(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (machine.shared->covers(address)) {
    append("shared memory, byte %td of %zu", byte - machine.shared->data(),
           machine.shared->bytes());
    return;
  }
  for (int i = 0; i < machine.launch->count; ++i) {
    const int region = machine.region_of[i];
    if (region < 0 || !machine.regions[region]->covers(address)) continue;
    const auto* start = reinterpret_cast<const unsigned char*>(machine.values[i]);
    append("argument %d, byte %td of %lld", i, byte - start, machine.launch->arguments[i].bytes);
    if (machine.regions[region]->contains(address, 1)) append(", which is const");
    return;
  }
  if (reinterpret_cast<uintptr_t>(address) < (1 << 16)) {
    append("a null pointer plus %zu", reinterpret_cast<size_t>(address));
  } else if (is_on_stack(address)) {
    append("the stack of a thread, of %zu KiB, is full", STACK_BYTES >> 10);
  } else {
    append("address %p, in no argument", address);
  }
}

void abandon() {
  catching = false;
  siglongjmp(machine.abandoned, 1);
}

void fail(const char* file, int line, const char* format, ...) {
  append_place();
  va_list values;
  va_start(values, format);
  append_values(format, values);
  va_end(values);
  append(" (%s:%d)", file_name(file), line);
  abandon();
}

void fail_divergence(int waiting, int other) {
  machine.current = waiting;
  append_place();
  append("waits at ");
  append_site(machine.threads[waiting].site);
  append(", but thread %d ", other);
  if (machine.states[other] == State::DONE) {
    append("has ended");
  } else {
    append("waits at ");
    append_site(machine.threads[other].site);
  }
  abandon();
}

Catching::Catching() : stack_(64 << 10) {
  stack_t alternative = {};
  alternative.ss_sp = stack_.data();
  alternative.ss_size = stack_.size();
  sigaltstack(&alternative, &previous_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  for (int signal : CAUGHT) sigaction(signal, &action, &previous_actions[signal]);

  sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = TICK;
  event.sigev_notify_thread_id = static_cast<int>(syscall(SYS_gettid));
  timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
  itimerspec every_second = {{1, 0}, {1, 0}};
  timer_settime(timer, 0, &every_second, nullptr);
  idle_ticks = 0;
  catching_thread = pthread_self();
  catching = true;
}

Catching::~Catching() {
  catching = false;
  timer_delete(timer);
  for (int signal : CAUGHT) sigaction(signal, &previous_actions[signal], nullptr);
  sigaltstack(&previous_stack, nullptr);
}

}  // namespace emulator
