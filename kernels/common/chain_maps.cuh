// A chain of layers as the copy engine sees it.
#pragma once

#include "../params.h"
#include "bulk_copy.cuh"

namespace hypatia {

struct ChainMaps {
  TensorMap weight[kChainLayers];
  TensorMap activation[kChainLayers + 1];  // the input, then each result
};
static_assert(sizeof(ChainMaps) == 3200, "launch/params.rs says 3200");

}  // namespace hypatia
