// One copy of all kernels; compiled once for each instruction set, with REGARD_ISA naming it.
#include "kernels.h"

#include "backward.h"
#include "delta_gradients.h"
#include "forward.h"
#include "linear_backward.h"

namespace regard::REGARD_ISA {

#define REGARD_NAME_OF(isa) #isa
#define REGARD_NAME(isa) REGARD_NAME_OF(isa)

template <class T>
static Kernels offered() {
    return {
        REGARD_NAME(REGARD_ISA),
        ForwardRoom<T>::bytes,
        forward_row<T>,
        BackwardRoom<T>::bytes,
        backward_start<T>,
        backward_column<T>,
        backward_sum<T>,
        LinearRoom<T>::bytes,
        linear_forward<T>,
        GradientRoom<T>::bytes,
        linear_backward<T>,
        DeltaRoom<T>::bytes,
        delta_forward<T>,
        DeltaGradientRoom<T>::bytes,
        delta_backward<T>,
    };
}

const Kernels& kernels(int bytes) {
    static const Kernels single = offered<float>(), wide = offered<double>();
    return bytes == 8 ? wide : single;
}

}  // namespace regard::REGARD_ISA
