// How the pieces of one call are shared out among workers.
#pragma once

#include "calls.h"
#include "linear_calls.h"

namespace regard {

void forward(const Attention& call);
void backward(const AttentionGradients& grad);

// A head of a sequence is a piece.
void linear_forward(const FeatureAttention& call);
void linear_backward(const FeatureGradients& grad);
void delta_forward(const DeltaRule& call);
void delta_backward(const DeltaGradients& grad);

}  // namespace regard
