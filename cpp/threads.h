// LibTorch's threads, without a compiler's OpenMP: that would link one runtime,
// and LibTorch may run on another.
#pragma once

#include <cstddef>
#include <functional>

namespace hypatia {

// Calls `work` at once in up to `threads` threads of LibTorch's pool, this one
// among them, and returns when all have; within a parallel region, or without a
// pool, here alone. Each gets its number, of the same thread the same call
// after call as far as the pool can tell. What one of them throws is thrown
// here.
void in_threads(size_t threads, const std::function<void(size_t)>& work);

// torch.get_num_threads(), or 1 within a parallel region.
size_t threads_at_most();

}  // namespace hypatia
