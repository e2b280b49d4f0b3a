// Included after a kernel's source: describes the kernel's parameters, and calls it with an array
// of addresses.
#pragma once

#include <utility>

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace emulator {

struct Kind {
  char passing;  // i an int64_t, f a float, p a const pointer, P a pointer, ? what no launch may
                 // pass
  char size;
  char element;  // f floating point, h __half, b __nv_bfloat16, i integer, ? anything
};

// Of launch bounds, the threads of a block; blocks of a multiprocessor may follow.
template <class... More>
constexpr long long first(long long threads, More...) {
  return threads;
}

template <class T>
constexpr Kind element_kind(char passing) {
  if constexpr (__is_same(T, float) || __is_same(T, double))
    return {passing, sizeof(T), 'f'};
  else if constexpr (__is_same(T, float2) || __is_same(T, float4))
    return {passing, 4, 'f'};
  else if constexpr (__is_same(T, __half))
    return {passing, 2, 'h'};
  else if constexpr (__is_same(T, __nv_bfloat16))
    return {passing, 2, 'b'};
  else if constexpr (is_one_of<T, bool, char, signed char, unsigned char, short, unsigned short,
                               int, unsigned, long, unsigned long, long long, unsigned long long>)
    return {passing, sizeof(T), 'i'};
  else
    return {passing, 0, '?'};
}

template <class T>
struct ParameterKind {
  static constexpr Kind value = __is_same(T, long long) ? Kind{'i', 8, 'i'}
                                : __is_same(T, float)   ? Kind{'f', 4, 'f'}
                                                        : Kind{'?', 0, '?'};
};
template <class T>
struct ParameterKind<T*> {
  static constexpr Kind value = element_kind<T>('P');
};
template <class T>
struct ParameterKind<const T*> {
  static constexpr Kind value = element_kind<T>('p');
};

template <class... P>
struct Parameters {
  static constexpr Kind kinds[] = {ParameterKind<P>::value..., {0, 0, 0}};
};

template <class... P>
const Kind* kinds_of(void (*)(P...)) {
  return Parameters<P...>::kinds;
}

template <class... P, size_t... I>
void call(void (*kernel)(P...), void* const* arguments, std::index_sequence<I...>) {
  kernel(*static_cast<P*>(arguments[I])...);
}
template <class... P>
void call(void (*kernel)(P...), void* const* arguments) {
  call(kernel, arguments, std::make_index_sequence<sizeof...(P)>());
}

}  // namespace emulator
