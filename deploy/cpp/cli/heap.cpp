#include "heap.h"

#include <cstdint>
#include <cstdlib>

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

void prepare_heap() {
    constexpr std::size_t kAhead = std::size_t(48) << 20, kLargePage = std::size_t(2) << 20, kPiece = 100000;
    mallopt(M_ARENA_MAX, 1);
    struct rlimit limit {};
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) return;  // nothing ahead of need
    mallopt(M_TRIM_THRESHOLD, int(2 * kAhead));
    mallopt(M_TOP_PAD, int(kAhead));
    // The heap grows when what it has is used up.
    const auto before = reinterpret_cast<std::uintptr_t>(sbrk(0));
    void *pieces[64];
    int count = 0;
    while (count < 64 && reinterpret_cast<std::uintptr_t>(sbrk(0)) == before) pieces[count++] = std::malloc(kPiece);
    while (count > 0) std::free(pieces[--count]);
    mallopt(M_TOP_PAD, 1 << 20);
    const auto after = reinterpret_cast<std::uintptr_t>(sbrk(0));
    const std::uintptr_t start = (before + kLargePage - 1) & ~(kLargePage - 1), end = after & ~(kLargePage - 1);
    if (start < end) madvise(reinterpret_cast<void *>(start), end - start, MADV_HUGEPAGE);
}

#else

void prepare_heap() {}

#endif
