// What constants, attributes and recorded types say, in the optimizer's terms.
#pragma once

#include <map>
#include <tuple>
#include <vector>

#include "cpp/graph/facts.h"
#include "hypatia/src/bridge/graph.rs.h"

namespace hypatia::graph {

// One number for each piece of memory read in one way.
using TensorKey = std::tuple<const void*, int64_t, int, std::vector<int64_t>,
                             std::vector<int64_t>>;
using TensorNumbers = std::map<TensorKey, uint32_t>;

// Null where there is no memory to compare.
const void* storage_key(const at::Tensor& tensor);

// dtype, shape, strided, needs_grad and identity of a tensor that is there.
void describe_tensor(const at::Tensor& tensor, TensorNumbers& numbers,
                     bridge::Value& record);

void describe_constant(const c10::IValue& payload, TensorNumbers& numbers,
                       bridge::Value& record);

// A list of constant numbers that nothing writes to.
void describe_list(const jit::Value* value, const Facts& facts,
                   bridge::Value& record);

// Sizes that a trace recorded.
void describe_hint(const c10::Type& type, bridge::Value& record);

}  // namespace hypatia::graph
