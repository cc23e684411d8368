// What this CPU can do, measured once: rates and the cost of one call, for the
// optimizer's predictions.
#pragma once

namespace hypatia::graph {

struct CpuProfile {
  double gflops = 0;       // fp32 products, as eager's linear reaches them
  double gbytes = 0;       // memory traffic of a copy, per second
  double dispatch_us = 0;  // one element-wise operator on little data
};

// From the cache file of an earlier process, else measured (about 50 ms) and
// written there; all zero (built-in figures) where HYPATIA_MEASURE=0. Figures
// are powers of the square root of two: two measurements of one machine mostly
// agree, and so do the decisions that rest on them.
const CpuProfile& cpu_profile();

}  // namespace hypatia::graph
