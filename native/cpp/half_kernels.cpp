// Attention of bfloat16 inputs on units made for it; compiled once for each instruction set that has them.
#include "half_backward.h"
#include "half_forward.h"
#include "kernels.h"
#if defined(__AMX_BF16__) || defined(REGARD_EMULATE_AMX)
#include "half_matrix_units.h"
#else
#include "half_dot_products.h"
#endif

namespace regard::REGARD_ISA {

#if defined(__AMX_BF16__) || defined(REGARD_EMULATE_AMX)
using Products = MatrixUnits;
#else
using Products = DotProducts;
#endif

// What these units do, and `rest` for everything else.
const Kernels& half_kernels(const Kernels& rest) {
    static const Kernels found = [&] {
        Kernels half = rest;
        half.forward_bytes = HalfForwardRoom::bytes;
        half.forward_row = half_forward_row<Products>;
        half.backward_bytes = HalfBackwardRoom::bytes;
        half.backward_column = half_backward_column<Products>;
        return half;
    }();
    return found;
}

}  // namespace regard::REGARD_ISA
