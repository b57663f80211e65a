#include "batcher/batcher.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "batcher/answer_queue.h"
#include "python/arrays.h"
#include "python/limits.h"
#include "python/without_gil.h"

namespace {

using Tokens = py::array_t<std::int32_t, py::array::c_style>;
using Outcomes = py::array_t<std::uint8_t, py::array::c_style>;
static_assert(sizeof(rgalign::Outcome) == sizeof(std::uint8_t));

constexpr double kMs = 1e6;  // nanoseconds

rgalign::BatchBuffers buffers_of(Tokens& token_ids, Tokens& positions, Tokens& cu_seqlens) {
  return {token_ids.mutable_data(), positions.mutable_data(), cu_seqlens.mutable_data()};
}

py::tuple shape_tuple(const rgalign::BatchShape& shape) {
  return py::make_tuple(shape.rows, shape.tokens, shape.computed_tokens, shape.longest, shape.width);
}

// The batcher and the queue of answers that Python's answer thread waits on. rgalign/batcher.py is the checked face.
class PyBatcher {
 public:
  PyBatcher(const rgalign::Limits& limits, const rgalign::Filling& filling)
      : answers_(std::make_unique<rgalign::AnswerQueue>()),
        batcher_(std::make_unique<rgalign::Batcher>(limits, filling, *answers_)) {}

  ~PyBatcher() {
    const WithoutGil released;
    if (batcher_->forked()) answers_.release();  // its condition variable has waiters that do not exist here
    batcher_.reset();
  }

  bool forked() const { return batcher_->forked(); }

  // The request's id, or (outcome, retry after ms); None after a fork.
  py::object submit(std::uint64_t tag, const Tokens& token_ids, double deadline_ms, std::uint64_t client, bool bulk) {
    if (token_ids.ndim() != 1) throw py::type_error("token_ids: [L]");
    rgalign::Request request;
    request.tag = tag;
    request.token_ids = token_ids.data();
    request.num_tokens = token_ids.size();
    request.time_left = nanoseconds(deadline_ms);
    request.client = client;
    request.priority = bulk ? rgalign::Priority::kBulk : rgalign::Priority::kInteractive;
    rgalign::Submitted submitted;
    // Giving up the GIL costs more than what is done under the mutex, but waiting for it with the GIL held is worse.
    if (!batcher_->try_submit(request, submitted)) {
      const WithoutGil released;
      submitted = batcher_->submit(request);
    }
    switch (submitted.status) {
      case rgalign::Submitted::Status::kAccepted:
        return py::int_(submitted.id);
      case rgalign::Submitted::Status::kRefused:
        return py::make_tuple(static_cast<int>(submitted.refusal), static_cast<double>(submitted.retry_after) / kMs);
      default:
        return py::none();
    }
  }

  bool cancel(rgalign::RequestId id) {
    const WithoutGil released;
    return batcher_->cancel(id);
  }

  // (tags, (rows, tokens, computed tokens, longest, width)), or None: there will be no more.
  py::object take(std::int32_t worker, Tokens token_ids, Tokens positions, Tokens cu_seqlens) {
    const rgalign::BatchBuffers buffers = buffers_of(token_ids, positions, cu_seqlens);
    rgalign::BatchShape shape;
    std::vector<std::uint64_t> tags;
    bool taken = false;
    {
      const WithoutGil released;
      taken = batcher_->take(worker, buffers, shape, tags);
    }
    if (!taken) return py::none();
    return py::make_tuple(tags, shape_tuple(shape));
  }

  py::tuple repack(std::int32_t worker, std::int64_t first, std::int64_t last, Tokens token_ids, Tokens positions,
                   Tokens cu_seqlens) {
    return shape_tuple(batcher_->repack(worker, first, last, buffers_of(token_ids, positions, cu_seqlens)));
  }

  // Which of the rows are their request's answer.
  std::vector<bool> finish(std::int32_t worker, const Outcomes& outcomes) {
    std::vector<std::uint8_t> won(static_cast<std::size_t>(outcomes.size()));
    {
      const WithoutGil released;
      batcher_->finish(worker, reinterpret_cast<const rgalign::Outcome*>(outcomes.data()), won.data());
    }
    return {won.begin(), won.end()};
  }

  // [(tag, outcome)], or None: closed, and there will be no more.
  py::object wait_answers() {
    std::vector<rgalign::Answer> answers;
    bool any = false;
    {
      const WithoutGil released;
      any = answers_->wait(answers);
    }
    if (!any) return py::none();
    py::list list(answers.size());
    for (std::size_t i = 0; i < answers.size(); ++i) {
      list[i] = py::make_tuple(answers[i].tag, static_cast<int>(answers[i].outcome));
    }
    return std::move(list);
  }

  // Returns when the batcher has answered all; the answer thread is told that these were the last.
  void close(double drain_ms) {
    const WithoutGil released;
    if (batcher_->forked()) return;
    batcher_->close(nanoseconds(drain_ms));
    answers_->close();
  }

  py::dict counters() const {
    const rgalign::Counters now = batcher_->counters();
    py::dict result;
    result["submitted"] = now.submitted;
    result["answered"] = std::vector<std::int64_t>(now.answered.begin(), now.answered.end());
    result["waiting"] = now.waiting;
    result["in_model"] = now.in_model;
    result["most_waiting"] = now.most_waiting;
    result["batches"] = now.batches;
    result["rows"] = now.rows;
    result["tokens"] = now.tokens;
    result["computed_tokens"] = now.computed_tokens;
    result["late_rows"] = now.late_rows;
    result["queue_cap"] = now.queue_cap;
    result["rows_per_second"] = now.rows_per_second;
    return result;
  }

 private:
  std::unique_ptr<rgalign::AnswerQueue> answers_;
  std::unique_ptr<rgalign::Batcher> batcher_;
};

std::unique_ptr<PyBatcher> make_batcher(const py::kwargs& settings) {
  return std::make_unique<PyBatcher>(
      limits_of(settings),
      rgalign::Filling{settings["pad_token"].cast<std::int32_t>(), settings["first_position"].cast<std::int32_t>()});
}

}  // namespace

void bind_batcher(py::module_& module) {
  py::class_<PyBatcher>(module, "Batcher", "See rgalign.batcher.Batcher.")
      .def(py::init(&make_batcher))
      .def_property_readonly("forked", &PyBatcher::forked)
      .def("submit", &PyBatcher::submit, py::arg("tag"), py::arg("token_ids").noconvert(), py::arg("deadline_ms"),
           py::arg("client"), py::arg("bulk"))
      .def("cancel", &PyBatcher::cancel, py::arg("request"))
      .def("take", &PyBatcher::take, py::arg("worker"), py::arg("token_ids").noconvert(),
           py::arg("positions").noconvert(), py::arg("cu_seqlens").noconvert())
      .def("repack", &PyBatcher::repack, py::arg("worker"), py::arg("first"), py::arg("last"),
           py::arg("token_ids").noconvert(), py::arg("positions").noconvert(), py::arg("cu_seqlens").noconvert())
      .def("finish", &PyBatcher::finish, py::arg("worker"), py::arg("outcomes").noconvert())
      .def("wait_answers", &PyBatcher::wait_answers)
      .def("close", &PyBatcher::close, py::arg("drain_ms"))
      .def("counters", &PyBatcher::counters);
}
