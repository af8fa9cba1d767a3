// Which units for products of bfloat16 numbers this processor has, and whether they pay.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace regard {

// AMX-BF16. Its registers are large, so Linux hands them out to processes that ask; the answer holds for all threads.
inline bool has_matrix_units() {
#if defined(__x86_64__) && defined(__linux__)
    constexpr uint32_t BF16 = 1u << 22, TILES = 1u << 24;
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (BF16 | TILES)) != (BF16 | TILES)) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
    return false;
#endif
}

// AVX512-BF16. On AMD's cores a product of pairs takes as long as one of float32 numbers and does twice the work; on
// Intel's it takes four times as long: 87 GFLOP/s where float32 does 176, on the Xeon it was measured on.
#if defined(__x86_64__)
inline bool has_dot_products() { return __builtin_cpu_supports("avx512bf16"); }
inline bool dot_products_pay() { return __builtin_cpu_is("amd"); }
#endif

}  // namespace regard
