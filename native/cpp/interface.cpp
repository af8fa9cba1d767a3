// The functions that Python calls, and the choice of the instruction set.
#include <cstdlib>
#include <cstring>
#include <exception>

#include "half_units.h"
#include "kernels.h"
#include "schedule.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(_WIN32)
#define REGARD_EXPORT extern "C" __declspec(dllexport)
#else
#define REGARD_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace regard {

namespace portable { const Kernels& kernels(int bytes); }
#if defined(REGARD_HAS_AVX2)
namespace avx2 { const Kernels& kernels(int bytes); }
namespace avx512 { const Kernels& kernels(int bytes); }
#endif
#if defined(REGARD_HAS_AVX512BF16)
namespace avx512bf16 { const Kernels& half_kernels(const Kernels& rest); }
#endif
#if defined(REGARD_HAS_AMX)
namespace amx { const Kernels& half_kernels(const Kernels& rest); }
#endif
#if defined(REGARD_HAS_AMX_EMULATED)
namespace amx_emulated { const Kernels& half_kernels(const Kernels& rest); }
#endif

namespace {

struct Choice {
    const char* isa;
    const Kernels& (*kernels)(int bytes);
    bool runs;
    bool pays = true;                                          // or runs where REGARD_ISA asks for it only
    const Kernels& (*half_kernels)(const Kernels&) = nullptr;  // for bfloat16
};

#if defined(REGARD_HAS_AVX2)
const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif

// Best first.
const Choice choices[] = {
#if defined(REGARD_HAS_AMX)
    {"amx", avx512::kernels, has_avx512 && has_dot_products() && has_matrix_units(), true, amx::half_kernels},
#endif
#if defined(REGARD_HAS_AVX512BF16)
    {"avx512bf16", avx512::kernels, has_avx512 && has_dot_products(), dot_products_pay(), avx512bf16::half_kernels},
#endif
#if defined(REGARD_HAS_AMX_EMULATED)
    {"amx_emulated", portable::kernels, true, false, amx_emulated::half_kernels},
#endif
#if defined(REGARD_HAS_AVX2)
    {"avx512", avx512::kernels, has_avx512},
    {"avx2", avx2::kernels,
     __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
    {"portable", portable::kernels, true},
};

const Choice& choice() {
    const char* wanted = std::getenv("REGARD_ISA");  // read at each call, so that a test can go through all of them
    for (const Choice& each : choices)
        if (each.runs && wanted && !std::strcmp(each.isa, wanted)) return each;
    for (const Choice& each : choices)
        if (each.runs && each.pays) return each;
    return choices[0];
}

// 0 for success: nothing may be thrown through ctypes.
template <class Call, class Function>
int safely(Function function, const Call* call) {
    try {
        function(*call);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

}  // namespace

const Kernels& kernels(int bytes) { return choice().kernels(bytes); }

const Kernels& attention_kernels(Dtype dtype) {
    const Choice& found = choice();
    const Kernels& rest = found.kernels(dtype == FLOAT64 ? 8 : 4);
    return found.half_kernels && dtype == BFLOAT16 ? found.half_kernels(rest) : rest;
}

}  // namespace regard

// Grows with every change of calls.h, so that a library never meets a Python side of another age.
REGARD_EXPORT int regard_version() { return 3; }

REGARD_EXPORT const char* regard_isa() { return regard::choice().isa; }

// Whether this machine has an instruction set that REGARD_ISA may ask for.
REGARD_EXPORT int regard_has_isa(const char* isa) {
    for (const regard::Choice& each : regard::choices)
        if (!std::strcmp(each.isa, isa)) return each.runs;
    return 0;
}

// Asks for large pages under memory that is about to be written for the first time: of 32 MB in small ones the system
// would hand out 8192, one interruption each. A wish; nothing depends on it.
REGARD_EXPORT void regard_large_pages(void* start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t size = 2 << 20;
    uintptr_t from = (uintptr_t(start) + size - 1) / size * size, to = (uintptr_t(start) + bytes) / size * size;
    if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

REGARD_EXPORT int regard_forward(const regard::Attention* call) { return regard::safely(regard::forward, call); }

REGARD_EXPORT int regard_backward(const regard::AttentionGradients* grad) {
    return regard::safely(regard::backward, grad);
}

REGARD_EXPORT int regard_linear_forward(const regard::FeatureAttention* call) {
    return regard::safely(regard::linear_forward, call);
}

REGARD_EXPORT int regard_linear_backward(const regard::FeatureGradients* grad) {
    return regard::safely(regard::linear_backward, grad);
}

REGARD_EXPORT int regard_delta_forward(const regard::DeltaRule* call) {
    return regard::safely(regard::delta_forward, call);
}

REGARD_EXPORT int regard_delta_backward(const regard::DeltaGradients* grad) {
    return regard::safely(regard::delta_backward, grad);
}
