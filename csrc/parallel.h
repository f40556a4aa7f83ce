// What the C++ files share besides the maths: fixed-width vectors, threads and memory.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
#endif

namespace codetr {

// The machine's vector registers. Compilers accept wider vectors, and make very slow code of some.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// W numbers in such a register.
template <typename T, int W>
struct Pack {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};

template <typename V, typename T>
inline __attribute__((always_inline)) V load(const T* from) {
  V pack;
  std::memcpy(&pack, from, sizeof(V));
  return pack;
}

template <typename V, typename T>
inline __attribute__((always_inline)) void store(T* to, const V& pack) {
  std::memcpy(to, &pack, sizeof(V));
}

// Both packs consist of segments of `Segment` lanes. Adds the halves of each segment; the results of `a`, then of `b`.
template <typename T, int W, int Segment, int... I>
inline __attribute__((always_inline)) typename Pack<T, W>::type fold(typename Pack<T, W>::type a,
                                                                     typename Pack<T, W>::type b,
                                                                     std::integer_sequence<int, I...>) {
  constexpr auto kFrom = [](int i) constexpr {
    const int lane = i % (W / 2);
    return i / (W / 2) * W + lane / (Segment / 2) * Segment + lane % (Segment / 2);
  };
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, kFrom(I)...) + __builtin_shufflevector(a, b, (kFrom(I) + Segment / 2)...);
#else
  using Index = typename Pack<std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>, W>::type;
  return __builtin_shuffle(a, b, Index{kFrom(I)...}) + __builtin_shuffle(a, b, Index{(kFrom(I) + Segment / 2)...});
#endif
}

template <typename T, int W, int Segment>
inline __attribute__((always_inline)) typename Pack<T, W>::type fold(typename Pack<T, W>::type a,
                                                                     typename Pack<T, W>::type b) {
  return fold<T, W, Segment>(a, b, std::make_integer_sequence<int, W>());
}

// The sums of the lanes of four packs.
template <typename T, int W>
inline __attribute__((always_inline)) void sum_lanes(const typename Pack<T, W>::type (&packs)[4], T* sums) {
  const auto first = fold<T, W, W>(packs[0], packs[1]), second = fold<T, W, W>(packs[2], packs[3]);
  if constexpr (W == 2) {
    std::memcpy(sums, &first, sizeof(first));
    std::memcpy(sums + 2, &second, sizeof(second));
  } else {
    auto all = fold<T, W, W / 2>(first, second);
    if constexpr (W >= 16) all = fold<T, W, 4>(all, all);
    if constexpr (W >= 8) all = fold<T, W, 2>(all, all);
    std::memcpy(sums, &all, 4 * sizeof(T));
  }
}

// Memory for intermediate results, aligned to cache lines; false where there is none.
template <typename T>
class Scratch {
 public:
  explicit Scratch(std::int64_t count)
      : memory_(std::aligned_alloc(64, (std::size_t(count) * sizeof(T) / 64 + 1) * 64)) {}
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit operator bool() const { return memory_ != nullptr; }
  T* data() const { return static_cast<T*>(memory_); }

 private:
  void* memory_;
};

// Large results come from the system as untouched pages; with 2 MB pages the first touch costs a fraction of the time.
// Only advice: where it is not heeded, everything works as before.
inline void expect_large_pages(void* memory, std::int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t kPage = std::uintptr_t(1) << 21;
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(memory) + kPage - 1) & ~(kPage - 1);
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(memory) + std::uintptr_t(bytes)) & ~(kPage - 1);
  if (end > begin + kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

template <typename T>
void fill_zero(T* memory, std::int64_t count, int threads) {
  constexpr std::int64_t kPart = (std::int64_t(1) << 20) / sizeof(T);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && count > kPart)
  for (std::int64_t at = 0; at < count; at += kPart)
    std::memset(memory + at, 0, sizeof(T) * (count - at < kPart ? count - at : kPart));
}

}  // namespace codetr
