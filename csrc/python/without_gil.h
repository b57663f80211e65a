// The GIL, given up for a scope. Unlike pybind11's own, a daemon thread may come back when the interpreter ends: Python
// before 3.14 then ends the thread by unwinding its stack, which std::terminate answers at the first destructor, and
// the whole process aborts. Here such a thread stops where it is, as it does in 3.14, and ends with the process.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {
      for (;;) pause();
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};
