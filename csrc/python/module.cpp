// rgalign._C. Only this folder knows Python: it turns arrays into pointers and releases the GIL; it decides nothing.
#include "python/arrays.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "The C++ side of rgalign.";
  bind_topk(module);
  bind_scorer(module);
  bind_batcher(module);
  bind_engine(module);
  bind_planner(module);
}
