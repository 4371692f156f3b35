"""The prelude of every C++ translation unit: vector versions of functions, conversions, and what operations call."""
from __future__ import annotations

from .cpp_math import MATH
from .cpp_vector_math import VECTOR_MATH
from .float8 import cpp_conversions

PRELUDE = r"""#include <stdint.h>
#include <stddef.h>
#if defined(__GNUC__) && !defined(__clang__)
// g++ follows what a clamp's limit becomes, a rounded constant at last, along a path of its own: the loop's choices of
// numbers turn into as many conditions on conditions. Rows of eight-bit floats took 1.6 times as long.
// Partial redundancy elimination would know a NaN test's result on one side of a maximum before, and g++ vectorises no
// choice of truth values. Straight-line strength reduction of g++ 12 is wrong: in a body with some twenty loads at
// constant distances, each from three arrays, it made addresses that are differences of pointers. A function whose
// result is chosen, as a softplus' is, it would call on that one side alone, and so in no vector. And loops are printed
// once for each side of what is known before: its copies of them for what is left are slower than choices of vectors.
#pragma GCC optimize("no-thread-jumps", "no-tree-pre", "no-tree-slsr", "no-tree-sink", "no-unswitch-loops")
#endif
#ifdef __clang__
// Its own max and min begin with the largest finite numbers: a row of infinities would get one of those.
#pragma omp declare reduction(rf_top : float : omp_out = omp_in > omp_out ? omp_in : omp_out) \
  initializer(omp_priv = -__builtin_inff())
#pragma omp declare reduction(rf_top : double : omp_out = omp_in > omp_out ? omp_in : omp_out) \
  initializer(omp_priv = -__builtin_inf())
#pragma omp declare reduction(rf_low : float : omp_out = omp_in < omp_out ? omp_in : omp_out) \
  initializer(omp_priv = __builtin_inff())
#pragma omp declare reduction(rf_low : double : omp_out = omp_in < omp_out ? omp_in : omp_out) \
  initializer(omp_priv = __builtin_inf())
#define RF_TOP rf_top
#define RF_LOW rf_low
#else
#define RF_TOP max
#define RF_LOW min
#endif
""" + VECTOR_MATH + r"""
extern "C" {
float lgammaf(float) noexcept;
double lgamma(double) noexcept;
}
typedef uint16_t rf_bf16;
typedef uint16_t rf_fp16;
static inline float rf_bits(uint32_t u) { float f; __builtin_memcpy(&f, &u, 4); return f; }
static inline float rf_from_bf16(rf_bf16 x) { return rf_bits((uint32_t)x << 16); }
// By arithmetic on bits: g++ 12 takes the compiler's own type one number after the other.
static inline float rf_from_fp16(rf_fp16 x) {
  const int32_t m = x & 0x7fff;
  const float doubled = rf_bits((uint32_t)(m << 13) + (113u << 23));
  float f = m < 0x400 ? doubled - rf_bits(113u << 23) : doubled * 0.5f;
  f = m < 0x7c00 ? f : rf_bits((uint32_t)(m << 13) | 0x7f800000u);
  uint32_t u; __builtin_memcpy(&u, &f, 4);
  return rf_bits(u | (uint32_t)(x & 0x8000) << 16);
}
static inline rf_bf16 rf_to_bf16(float x) {
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (rf_bf16)(x != x ? 0x7fc0u : rounded);
}
// The same as a float again. A NaN's bits are added: chosen, they are a constant that g++ follows through the next
// operations on a path of its own, which keeps the loop from being vectorised.
static inline float rf_round_bf16(float x) {
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  return rf_bits(((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u) | (x != x ? 0x7fc00000u : 0u));
}
// For values whose NaNs have zeros in the lower half (cpp_nans); processors whose own NaNs haven't get the above.
#if defined(__x86_64__) || defined(__aarch64__) || defined(__riscv)
static inline rf_bf16 rf_to_bf16_unchecked(float x) {
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  return (rf_bf16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline float rf_round_bf16_unchecked(float x) {
  uint32_t u; __builtin_memcpy(&u, &x, 4);
  return rf_bits((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
}
#else
#define rf_to_bf16_unchecked rf_to_bf16
#define rf_round_bf16_unchecked rf_round_bf16
#endif
static inline rf_fp16 rf_to_fp16(float x) {
  int32_t u; __builtin_memcpy(&u, &x, 4);
  const int32_t a = u & 0x7fffffff;
  const float sum = rf_bits((uint32_t)a) + 0.5f;  // whose last bit is that of the smallest numbers
  int32_t small; __builtin_memcpy(&small, &sum, 4);
  const int32_t normal = (a - (112 << 23) + 0xfff + (a >> 13 & 1)) >> 13;
  int32_t code = a < 113 << 23 ? small - (126 << 23) : normal;
  code = code > 0x7bff ? 0x7c00 : code;
  code = a > 0x7f800000 ? 0x7e00 : code;
  return (rf_fp16)(code | (u >> 16 & 0x8000));
}
static inline float rf_round_fp16(float x) { return rf_from_fp16(rf_to_fp16(x)); }
static inline bool rf_signbit(float x) { uint32_t u; __builtin_memcpy(&u, &x, 4); return u >> 31; }
static inline bool rf_signbit(double x) { uint64_t u; __builtin_memcpy(&u, &x, 8); return u >> 63; }
template <typename To, typename From> static inline To rf_same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "as wide");
  To y; __builtin_memcpy(&y, &x, sizeof(To)); return y;
}
// Two choices, one after the other: with a disjunction a chain of these is control flow, and not vectorised. The first
// is the processor's instruction, which keeps a NaN on the left; the second is none where the right is a constant.
template <typename T> static inline T rf_max(T a, T b) { const T m = a < b ? b : a; return b != b ? b : m; }
template <typename T> static inline T rf_min(T a, T b) { const T m = a > b ? b : a; return b != b ? b : m; }
template <typename T> static inline T rf_chosen(bool first, T a, T b) { return first ? a : b; }
// A distance between lanes that g++ can't know. Elements at constant ones it loads in rows as long as the distance,
// and picks its own: of matrices of 64 x 64 side by side 14000 vectors, in half a minute.
static inline int64_t rf_pitch(int64_t n) { __asm__("" : "+r"(n)); return n; }
static inline double rf_logaddexp(double a, double b) {  // equal infinities have no distance
  return rf_max(a, b) + RF_LANE(log1p)(RF_LANE(exp)(a == b ? 0.0 : -__builtin_fabs(a - b)));
}
// Lanes of a row's accumulators into one, halved until one is left.
#define RF_TREE(name, joined) template <int N, typename T> static inline T name(T* a) { \
    if constexpr (N == 1) return a[0]; \
    else { \
      _Pragma("omp simd") for (int l = 0; l < N / 2; ++l) { const T x = a[l], y = a[l + N / 2]; a[l] = joined; } \
      return name<N / 2>(a); \
    } \
  }
RF_TREE(rf_sum_of, x + y) RF_TREE(rf_prod_of, x * y) RF_TREE(rf_max_of, rf_max(x, y)) RF_TREE(rf_min_of, rf_min(x, y))
// The first place of the largest, or least, of the lanes' best: a NaN is both.
#define RF_FIRST(name, best) template <int N, typename T, typename P> static inline P name(const T* a, P* at) { \
    T values[N]; __builtin_memcpy(values, a, sizeof values); \
    const T top = best<N>(values); \
    _Pragma("omp simd") for (int l = 0; l < N; ++l) { \
      const bool found = (a[l] == top) | ((a[l] != a[l]) & (top != top)); \
      at[l] = found ? at[l] : (P)(((uint64_t)1 << (8 * sizeof(P) - 1)) - 1); \
    } \
    return rf_min_of<N>(at); \
  }
RF_FIRST(rf_first_max_of, rf_max_of) RF_FIRST(rf_first_min_of, rf_min_of)
template <typename T> static inline bool rf_minus_one(T b) { return (T)-1 < 0 && b == (T)-1; }
template <typename T> static inline T rf_truncdiv(T a, T b) {
  return b == 0 ? 0 : rf_minus_one(b) ? (T)(0 - a) : (T)(a / b);
}
template <typename T> static inline T rf_mod(T a, T b) { return b == 0 || rf_minus_one(b) ? 0 : (T)(a % b); }
template <typename T> static inline T rf_remainder(T a, T b) {
  const T r = rf_mod(a, b);
  return (r != 0 && ((r < 0) != (b < 0))) ? (T)(r + b) : r;
}
template <typename T> static inline T rf_floordiv(T a, T b) {
  const T q = rf_truncdiv(a, b);
  return (rf_mod(a, b) != 0 && ((a < 0) != (b < 0))) ? (T)(q - 1) : q;
}
template <typename T> static inline T rf_ipow(T a, T b) {
  if (b < 0) return a == 1 ? 1 : a == (T)-1 ? ((b & 1) ? (T)-1 : 1) : 0;
  T result = 1;
  for (; b; b >>= 1, a *= a) if (b & 1) result *= a;
  return result;
}
template <typename T> static inline T rf_shl(T a, T b) { return b < 0 || b >= (T)(sizeof(T) * 8) ? 0 : (T)(a << b); }
template <typename T> static inline T rf_shr(T a, T b) {
  return b < 0 || b >= (T)(sizeof(T) * 8) ? (T)(a < 0 ? -1 : 0) : (T)(a >> b);
}
// Which g++, of a weak symbol, can't know: of a truth value that is a place it takes the vector's mask, 0 or -1.
__attribute__((weak, visibility("hidden"))) int64_t rf_zero = 0;
static inline int64_t rf_bounded(int64_t i, int64_t n) {
  if (__builtin_expect((uint64_t)i >= (uint64_t)n, 0)) { rf_status = 1; return 0; }
  return i;
}
static inline int64_t rf_within(int64_t i, int64_t n, int& outside) {  // without a branch, for vectors
  const bool wrong = (uint64_t)i >= (uint64_t)n;
  outside |= wrong;
  return wrong ? 0 : i;
}
// ``n`` elements as whole lines past the caches, or as they are where ``to`` isn't the start of a line.
template <typename T> static inline void rf_stream(T* to, const T* from, int64_t n) {
  int64_t k = 0;
#ifdef __x86_64__
#if defined(__AVX512F__)
#define RF_WIDE 64
#define RF_STREAM "vmovntdq %1, %0"
#elif defined(__AVX__)
#define RF_WIDE 32
#define RF_STREAM "vmovntdq %1, %0"
#else
#define RF_WIDE 16
#define RF_STREAM "movntdq %1, %0"
#endif
  typedef char wide __attribute__((vector_size(RF_WIDE), may_alias));
  const int64_t step = RF_WIDE / sizeof(T);
  for (; (uintptr_t)to % 64 == 0 && k + step <= n; k += step)
    asm volatile(RF_STREAM : "=m"(*(wide*)(to + k)) : "v"(*(const wide*)(from + k)));
#endif
  for (; k < n; ++k) to[k] = from[k];
}
static inline void rf_streams_end() {  // before others may read what was written so
#ifdef __x86_64__
  asm volatile("sfence" ::: "memory");
#endif
}
// A block of N by N elements transposed in registers: each of log2(N) steps interleaves rows i and i + N / 2.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define RF_TURNS(T) (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8)
template <typename T> struct rf_row {
  static constexpr int N = sizeof(T) == 8 ? 8 : 16;
  typedef T row __attribute__((vector_size(N * sizeof(T)), aligned(1), may_alias));
};
template <int N, typename V> static inline V rf_interleaved(V a, V b, int high) {
  if constexpr (N == 8)
    return high ? __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
                : __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else
    return high ? __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                : __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
template <typename T> static inline void rf_turn_block(const T* from, int64_t pitch, T* to, int64_t stride) {
  constexpr int N = rf_row<T>::N;
  typedef typename rf_row<T>::row row;
  row r[N], s[N];
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) r[k] = *(const row*)(from + k * pitch);
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
#pragma GCC unroll 8
    for (int k = 0; k < N / 2; ++k) {
      s[2 * k] = rf_interleaved<N, row>(r[k], r[k + N / 2], 0);
      s[2 * k + 1] = rf_interleaved<N, row>(r[k], r[k + N / 2], 1);
    }
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) r[k] = s[k];
  }
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) *(row*)(to + k * stride) = r[k];
}
#else
#define RF_TURNS(T) false
template <typename T> struct rf_row { static constexpr int N = 16; };
template <typename T> static inline void rf_turn_block(const T*, int64_t, T*, int64_t) {}
#endif
// ``to[a * stride + b] = from[b * pitch + a]``.
template <int B, int A, typename T>
static inline void rf_turn(const T* from, int64_t pitch, T* to, int64_t stride) {
  constexpr int N = rf_row<T>::N, b0 = RF_TURNS(T) ? B / N * N : 0, a0 = b0 ? A / N * N : 0;
  for (int a = 0; a < a0; a += N)
    for (int b = 0; b < b0; b += N) rf_turn_block<T>(from + b * pitch + a, pitch, to + a * stride + b, stride);
  for (int a = 0; a < A; ++a)
    for (int b = a < a0 ? b0 : 0; b < B; ++b) to[a * stride + b] = from[b * pitch + a];
}
// Philox4x32-10 (Salmon et al., 2011) for a 64-bit key and counter: word W of four. Its rounds are spelled out: a loop
// inside of a loop isn't vectorised.
template <int W> static inline int32_t rf_philox(int64_t seed, int64_t position) {
  uint32_t a = (uint32_t)position, b = (uint32_t)((uint64_t)position >> 32), c = 0, d = 0;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
#define RF_ROUND { \
    const uint64_t first = (uint64_t)a * 0xD2511F53u, second = (uint64_t)c * 0xCD9E8D57u; \
    a = (uint32_t)(second >> 32) ^ b ^ k0, c = (uint32_t)(first >> 32) ^ d ^ k1; \
    b = (uint32_t)second, d = (uint32_t)first; \
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u; \
  }
  RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND RF_ROUND
  return (int32_t)(W == 0 ? a : b);
}
#define RF_MIN(a, b) ((a) < (b) ? (a) : (b))
#define RF_MAX(a, b) ((a) > (b) ? (a) : (b))
""" + MATH + cpp_conversions()
