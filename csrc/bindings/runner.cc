// SPDX-License-Identifier: Apache-2.0
// Running files from Python: buffers go in and out without copies, and the GIL is free while a graph runs.
// pyquant/circle/runner.py is its face.
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <memory>
#include <vector>

#include "bindings/bindings.h"
#include "run/numbers.h"
#include "run/runner.h"

namespace py = pybind11;

namespace pyquant::bindings {
namespace {

using run::Port;
using run::Shape;
using Ints = py::typing::Tuple<int, py::ellipsis>;
using Row = py::typing::Dict<py::str, py::object>;
using Rows = py::typing::List<Row>;

/// A C-contiguous buffer of an object, released with this.
class View {
 public:
  View(const py::handle object, bool writable) {
    const int flags = PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) throw py::error_already_set();
  }
  View(View&& other) noexcept : buffer_(other.buffer_) { other.buffer_.obj = nullptr; }
  View(const View&) = delete;
  ~View() {
    if (buffer_.obj) PyBuffer_Release(&buffer_);
  }

  void* data() const { return buffer_.buf; }
  int64_t size() const { return buffer_.len; }

 private:
  Py_buffer buffer_;
};

Ints ints(const Shape& shape) {
  py::tuple out(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) out[i] = shape[i];
  return Ints(std::move(out));
}

Shape shape_of(const py::handle dims) {
  Shape shape;
  for (const py::handle dim : dims) shape.push_back(dim.cast<int32_t>());
  return shape;
}

struct PortView {
  std::shared_ptr<const run::Program> program;
  const Port* port;
};

class PyRunner {
 public:
  PyRunner(std::shared_ptr<const run::Program> program, std::shared_ptr<run::Workspace> workspace,
           uint64_t limit)
      : workspace_(std::move(workspace)), runner_(std::move(program), workspace_, {limit}) {}

  py::typing::List<Ints> prepare(const py::typing::Iterable<Ints>& shapes) {
    const std::vector<Shape> wanted = shapes_of(shapes);
    std::vector<Shape> made;
    const Status status = alone([&]() -> Status {
      PYQUANT_TRY(runner_.prepare(wanted));
      for (size_t k = 0; k < runner_.outputs().size(); ++k) made.push_back(runner_.output_shape(k));
      return {};
    });
    ok_or_raise(status);
    py::typing::List<Ints> out;
    for (const Shape& shape : made) out.append(ints(shape));
    return out;
  }

  /// Another thread may have prepared other shapes meanwhile.
  void run(const py::typing::Iterable<Ints>& shapes, const py::typing::List<py::object>& inputs,
           const py::typing::List<py::object>& outputs, const py::object& observer) {
    const std::vector<Shape> wanted = shapes_of(shapes);
    const std::vector<View> in = views(inputs, false), out = views(outputs, true);
    std::vector<const void*> from;
    std::vector<void*> to;
    for (const View& view : in) from.push_back(view.data());
    for (const View& view : out) to.push_back(view.data());
    std::unique_ptr<py::error_already_set> raised;
    const run::Runner::Observer seen = [&](int64_t op, size_t tensor, const Shape& shape,
                                           circle::Bytes bytes) {
      if (raised) return;
      const py::gil_scoped_acquire lock;
      try {
        observer(op, tensor, ints(shape), py::bytes(reinterpret_cast<const char*>(bytes.data), bytes.size));
      } catch (py::error_already_set& error) {
        raised = std::make_unique<py::error_already_set>(std::move(error));
      }
    };
    const run::Runner::Observer* const given = observer.is_none() ? nullptr : &seen;
    const Status status = alone([&]() -> Status {
      PYQUANT_TRY(runner_.prepare(wanted));
      PYQUANT_TRY(require_sizes(in, out));
      return runner_.run(from, to, given);
    });
    if (raised) throw py::error_already_set(std::move(*raised));
    ok_or_raise(status);
  }

  void start_profile() {
    alone([&]() -> Status {
      runner_.start_profile();
      return {};
    });
  }

  Rows profile() {
    std::vector<run::StepProfile> entries;
    alone([&]() -> Status {
      entries = runner_.profile();
      return {};
    });
    Rows out;
    for (const run::StepProfile& entry : entries) {
      Row row;
      row["operator"] = entry.op;
      row["name"] = text(op_name(runner_.program().graph().operators[entry.op]));
      row["calls"] = entry.calls;
      row["nanoseconds"] = entry.nanoseconds;
      row["bytes"] = entry.bytes;
      row["multiply_adds"] = entry.multiply_adds;
      out.append(row);
    }
    return out;
  }

 private:
  /// What `call` says, while this thread has the workspace for itself. Nobody waits for that with the GIL:
  /// the thread that has the workspace may want it for an observer.
  template <class Call>
  Status alone(const Call& call) {
    const py::gil_scoped_release free;
    const std::lock_guard<std::recursive_mutex> lock(workspace_->mutex());
    return call();
  }

  static std::vector<Shape> shapes_of(const py::typing::Iterable<Ints>& shapes) {
    std::vector<Shape> out;
    for (const py::handle each : shapes) out.push_back(shape_of(each));
    return out;
  }

  static std::vector<View> views(const py::list& objects, bool writable) {
    std::vector<View> out;
    out.reserve(objects.size());
    for (const py::handle object : objects) out.emplace_back(object, writable);
    return out;
  }

  Status require_sizes(const std::vector<View>& in, const std::vector<View>& out) const {
    for (const bool input : {true, false}) {
      const std::vector<View>& given = input ? in : out;
      const std::vector<Port>& ports = input ? runner_.inputs() : runner_.outputs();
      if (given.size() != ports.size()) {
        return Fault{Code::E_RUN_INPUT,
                     "has " + std::to_string(ports.size()) + (input ? " inputs" : " outputs") + ", got " +
                         std::to_string(given.size()),
                     runner_.program().name()};
      }
      for (size_t i = 0; i < given.size(); ++i) {
        const int64_t wanted = input ? runner_.input_bytes(i) : runner_.output_bytes(i);
        if (given[i].size() == wanted) continue;
        return Fault{Code::E_RUN_INPUT,
                     "got a buffer of " + std::to_string(given[i].size()) + " bytes, expected " +
                         std::to_string(wanted),
                     runner_.program().name() + ", '" + ports[i].name + "'"};
      }
    }
    return {};
  }

  std::shared_ptr<run::Workspace> workspace_;
  run::Runner runner_;
};

py::typing::List<PortView> ports_of(const std::shared_ptr<const run::Program>& program,
                                    const std::vector<Port>& ports) {
  py::typing::List<PortView> out;
  for (const Port& port : ports) out.append(py::cast(PortView{program, &port}));
  return out;
}

std::shared_ptr<const run::Program> load(const std::string& path, const std::string& signature) {
  const py::gil_scoped_release free;
  auto program = run::Program::load(path, signature);
  const py::gil_scoped_acquire lock;
  return value_or_raise(std::move(program));
}

std::shared_ptr<const run::Program> load_bytes(const py::bytes& data, const std::string& name,
                                               const std::string& signature) {
  const HeldBytes held = hold(data);
  return value_or_raise(run::Program::from_bytes(held.bytes, name, held.owner, signature));
}

void require_bytes(const View& view, int64_t wanted, const char* what) {
  if (view.size() == wanted) return;
  raise({Code::E_RUN_INPUT,
         std::string(what) + " has " + std::to_string(view.size()) + " bytes, expected " +
             std::to_string(wanted),
         ""});
}

void to_integers(const PortView& view, const py::object& floats, const py::object& integers,
                 const Ints& dims) {
  const circle::Tensor& tensor = *view.port->tensor;
  const View from(floats, false), to(integers, true);
  const Shape shape = shape_of(dims);
  const int64_t count = circle::element_count(shape).value_or(-1);
  require_bytes(from, count * 4, "the floats");
  require_bytes(to, circle::byte_size(tensor.dtype, shape).value_or(-1), "the integers");
  const py::gil_scoped_release free;
  run::to_integers(tensor, shape, static_cast<const float*>(from.data()), to.data());
}

void to_floats(const PortView& view, const py::object& integers, const py::object& floats, const Ints& dims) {
  const circle::Tensor& tensor = *view.port->tensor;
  const View from(integers, false), to(floats, true);
  const Shape shape = shape_of(dims);
  const int64_t count = circle::element_count(shape).value_or(-1);
  require_bytes(from, circle::byte_size(tensor.dtype, shape).value_or(-1), "the integers");
  require_bytes(to, count * 4, "the floats");
  const py::gil_scoped_release free;
  run::to_floats(tensor, shape, from.data(), static_cast<float*>(to.data()));
}

}  // namespace

void bind_runner(py::module_& m) {
  py::class_<PortView>(m, "Port", "An input or output of a graph.")
      .def_property_readonly("name", [](const PortView& p) { return text(p.port->name); })
      .def_property_readonly("tensor", [](const PortView& p) { return p.port->index; })
      .def_property_readonly("dtype", [](const PortView& p) { return text(name_of(p.port->tensor->dtype)); })
      .def_property_readonly(
          "shape", [](const PortView& p) { return ints(p.port->shape); }, "-1 where it is open.")
      .def_property_readonly(
          "has_numbers", [](const PortView& p) { return run::has_numbers(*p.port->tensor); },
          "Whether its integers stand for real numbers (int8, uint8, int16 with qparams).")
      .def("to_integers", &to_integers, py::arg("floats"), py::arg("integers"), py::arg("shape"))
      .def("to_floats", &to_floats, py::arg("integers"), py::arg("floats"), py::arg("shape"));
  py::class_<run::Workspace, std::shared_ptr<run::Workspace>>(m, "Workspace",
                                                              "Threads and memory that runners share.")
      .def(py::init<int>(), py::arg("threads") = 0)
      .def_property_readonly("threads", [](run::Workspace& w) { return w.threads().count(); });
  py::class_<run::Program, std::shared_ptr<run::Program>>(m, "Program", "A file that can be run.")
      .def_property_readonly("inputs",
                             [](const std::shared_ptr<run::Program>& p) { return ports_of(p, p->inputs()); })
      .def_property_readonly("outputs",
                             [](const std::shared_ptr<run::Program>& p) { return ports_of(p, p->outputs()); })
      .def_property_readonly("name", [](const run::Program& p) { return text(p.name()); })
      .def_property_readonly(
          "graph", [](const run::Program& p) { return &p.graph() - p.model().graphs.data(); },
          "Its number in the file.")
      .def(
          "operation",
          [](const run::Program& p, size_t op) {
            return std::const_pointer_cast<run::Program>(value_or_raise(p.operation(op)));
          },
          py::arg("operator"), "One operator alone.");
  py::class_<PyRunner>(m, "Runner", "Runs one graph.")
      .def(py::init([](const std::shared_ptr<run::Program>& program,
                       const std::shared_ptr<run::Workspace>& workspace,
                       uint64_t limit) { return std::make_unique<PyRunner>(program, workspace, limit); }),
           py::arg("program"), py::arg("workspace"), py::arg("memory_limit"))
      .def("prepare", &PyRunner::prepare, py::arg("shapes"), "Shapes of the inputs -> shapes of the outputs.")
      .def("run", &PyRunner::run, py::arg("shapes"), py::arg("inputs"), py::arg("outputs"),
           py::arg("observer") = py::none(), "For inputs of these shapes, planned if they were not.")
      .def("start_profile", &PyRunner::start_profile)
      .def("profile", &PyRunner::profile);
  m.def(
      "load_program",
      [](const std::string& path, const std::string& signature) {
        return std::const_pointer_cast<run::Program>(load(path, signature));
      },
      py::arg("path"), py::arg("signature"));
  m.def(
      "load_program_bytes",
      [](const py::bytes& data, const std::string& name, const std::string& signature) {
        return std::const_pointer_cast<run::Program>(load_bytes(data, name, signature));
      },
      py::arg("data"), py::arg("name"), py::arg("signature"));
}

}  // namespace pyquant::bindings
