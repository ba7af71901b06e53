// SPDX-License-Identifier: Apache-2.0
// The Python module pyquant._circle: models as read-only objects, constants as memory views into the mapped
// file. Without pybind11/stl.h, because it costs seconds of compile time. pyquant/circle is its
// face.
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "circle/describe.h"
#include "circle/file.h"
#include "pyquant/circle.h"

namespace py = pybind11;

namespace pyquant::bindings {

void raise(const Fault& fault) {
  const py::object type = py::module_::import("pyquant.errors").attr("CircleError");
  PyErr_SetObject(type.ptr(), py::str(fault.text()).ptr());
  throw py::error_already_set();
}

py::str text(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
}

HeldBytes hold(const py::bytes& data) {
  char* begin = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(data.ptr(), &begin, &size) != 0) throw py::error_already_set();
  std::shared_ptr<const void> owner(new py::object(data), [](const void* held) {
    const py::gil_scoped_acquire lock;
    delete static_cast<const py::object*>(held);
  });
  return {{reinterpret_cast<const uint8_t*>(begin), static_cast<size_t>(size)}, std::move(owner)};
}

}  // namespace pyquant::bindings

namespace pyquant::circle {
namespace {

using bindings::raise;
using bindings::text;
using bindings::value_or_raise;

using Ints = py::typing::Tuple<int, py::ellipsis>;
using Floats = py::typing::Tuple<float, py::ellipsis>;
using FaultTuple = py::typing::Tuple<py::str, py::str, py::str>;
using Faults = py::typing::List<FaultTuple>;
using Names = py::typing::Dict<py::str, int>;
using Shared = std::shared_ptr<const Model>;

template <typename Tuple, typename List>
Tuple tuple_of(const List& list) {
  py::tuple out(list.size());
  for (size_t i = 0; i < list.size(); ++i) out[i] = list[i];
  return Tuple(std::move(out));
}

template <typename Item, typename F>
py::typing::List<Item> list_of(size_t count, const F& item) {
  py::typing::List<Item> out;
  for (size_t i = 0; i < count; ++i) out.append(item(i));
  return out;
}

Target target_of(const std::string& name) {
  const auto target = target_by_name(name);
  if (!target)
    raise({Code::E_PLAN_VALUE, "target '" + name + "' is unknown, expected one of " + target_names(), ""});
  return *target;
}

Faults faults_of(const std::vector<Fault>& faults) {
  return Faults(list_of<FaultTuple>(faults.size(), [&](size_t i) {
    return py::make_tuple(code_name(faults[i].code), text(faults[i].message), text(faults[i].where));
  }));
}

// Constant bytes; keeps the model alive, which keeps the mapping.
struct Data {
  Shared model;
  Bytes bytes;
};

struct TensorView {
  Shared model;
  size_t graph;
  size_t index;
  const Tensor& get() const { return model->graphs[graph].tensors[index]; }
};

struct OperatorView {
  Shared model;
  size_t graph;
  size_t index;
  const Operator& get() const { return model->graphs[graph].operators[index]; }
};

struct GraphView {
  Shared model;
  size_t index;
  const Graph& get() const { return model->graphs[index]; }
};

struct ModelView {
  Shared model;
};

py::object view_of(const Shared& model, Bytes bytes) {
  const py::object data = py::cast(Data{model, bytes});
  return py::reinterpret_steal<py::object>(PyMemoryView_FromObject(data.ptr()));
}

py::dict names_of(const std::vector<NamedIndex>& entries) {
  py::dict out;
  for (const auto& [name, index] : entries) out[text(name)] = index;
  return out;
}

py::object option_object(const Field& field, const OptionValue& value) {
  if (const bool* flag = std::get_if<bool>(&value)) return py::bool_(*flag);
  if (const float* number = std::get_if<float>(&value)) return py::float_(*number);
  if (const auto* list = std::get_if<std::vector<int32_t>>(&value)) return tuple_of<Ints>(*list);
  if (field.kind == FieldKind::Int) return py::int_(std::get<int64_t>(value));
  return text(option_text(field, value));
}

ModelView read(const std::string& path) {
  return {std::make_shared<const Model>(value_or_raise(read_file(path)))};
}

ModelView read_data(const py::bytes& data) {
  const bindings::HeldBytes held = bindings::hold(data);
  return {std::make_shared<const Model>(value_or_raise(read_bytes(held.bytes, "bytes", held.owner)))};
}

uint64_t join_files(const py::typing::List<py::str>& keys, const py::typing::List<py::str>& paths,
                    const std::string& path) {
  std::vector<Model> models;
  std::vector<NamedModel> parts;
  models.reserve(paths.size());
  for (size_t i = 0; i < paths.size(); ++i) {
    models.push_back(value_or_raise(read_file(paths[i].cast<std::string>())));
    parts.push_back({keys[i].cast<std::string>(), &models.back()});
  }
  std::optional<Result<Written>> written;
  std::optional<Result<Model>> joined;
  {
    const py::gil_scoped_release free;
    joined = join(parts);
    if (joined->ok()) written = write_file(joined->value(), path);
  }
  if (!joined->ok()) raise(joined->fault());
  return value_or_raise(std::move(*written)).bytes;
}

Faults check_plan(const std::string& plan_text, const py::typing::Iterable<int>& sizes,
                  const std::string& target) {
  Plan plan = value_or_raise(parse_plan(plan_text, "plan"));
  std::vector<Bytes> bytes;
  for (const py::handle size : sizes) bytes.push_back({nullptr, size.cast<size_t>()});
  if (const Status bound = bind_constants(plan, bytes); !bound.ok()) raise(bound.fault());
  return faults_of(check(plan.model, target_of(target)));
}

// The mapped file that the bytes of a constant of a model that was read lie in; null for other bytes.
const Mapping* file_of(const py::handle& view, Bytes bytes) {
  if (!PyMemoryView_Check(view.ptr())) return nullptr;
  const py::object base = view.attr("obj");
  if (!py::isinstance<Data>(base)) return nullptr;
  for (const auto& file : base.cast<const Data&>().model->files) {
    if (file->has(bytes)) return file.get();
  }
  return nullptr;
}

// `known`: index -> bytes that checks look at; `give(index)` returns an iterable of buffers with the bytes of
// any other constant, when it is written.
uint64_t write_plan(const std::string& plan_text, const py::typing::Iterable<int>& sizes,
                    const py::typing::Dict<int, py::buffer>& known,
                    const py::typing::Callable<py::typing::Iterable<py::buffer>(int)>& give,
                    const std::string& path) {
  Plan plan = value_or_raise(parse_plan(plan_text, "plan"));
  std::vector<Bytes> bytes;
  for (const py::handle size : sizes) bytes.push_back({nullptr, size.cast<size_t>()});
  std::vector<py::buffer_info> held;
  const auto bytes_of = [&held](const py::handle& item) -> Bytes {
    held.push_back(py::reinterpret_borrow<py::buffer>(item).request());
    return {static_cast<const uint8_t*>(held.back().ptr),
            static_cast<size_t>(held.back().size) * static_cast<size_t>(held.back().itemsize)};
  };
  for (const auto& [index, data] : known) bytes.at(index.cast<size_t>()) = bytes_of(data);
  if (const Status bound = bind_constants(plan, bytes); !bound.ok()) raise(bound.fault());
  std::optional<py::error_already_set> raised;
  const Fill fill = [&](uint32_t buffer, const Sink& sink) -> Status {
    const py::gil_scoped_acquire lock;
    try {
      for (const py::handle piece : py::iter(give(plan.constants[buffer - 1].index))) {
        const py::buffer_info info = py::reinterpret_borrow<py::buffer>(piece).request();
        const Bytes next{static_cast<const uint8_t*>(info.ptr),
                         static_cast<size_t>(info.size) * static_cast<size_t>(info.itemsize)};
        const Mapping* file = file_of(piece, next);
        const py::gil_scoped_release free;
        PYQUANT_TRY(sink(next, file));
      }
    } catch (py::error_already_set& error) {  // becomes the caller's, once the temporary file is gone
      raised.emplace(error);
      return Fault{Code::E_WRITE, "a constant could not be made", path};
    }
    return {};
  };
  std::optional<Result<Written>> written;
  {
    const py::gil_scoped_release free;
    written = write_file(plan.model, path, Target::Circle, Layout::Auto, fill);
  }
  if (raised) throw std::move(*raised);
  return value_or_raise(std::move(*written)).bytes;
}

void bind_views(py::module_& m) {
  py::class_<Data>(m, "Data", py::buffer_protocol(), "Read-only bytes of a constant.")
      .def_buffer([](Data& data) {
        return py::buffer_info(const_cast<uint8_t*>(data.bytes.data), 1,
                               py::format_descriptor<uint8_t>::format(), 1,
                               {static_cast<py::ssize_t>(data.bytes.size)}, {py::ssize_t{1}}, true);
      });
  py::class_<TensorView>(m, "Tensor", "A tensor of a Circle model.")
      .def_property_readonly("name", [](const TensorView& t) { return text(t.get().name); })
      .def_property_readonly("dtype", [](const TensorView& t) { return text(name_of(t.get().dtype)); })
      .def_property_readonly("shape", [](const TensorView& t) { return tuple_of<Ints>(t.get().shape); })
      .def_property_readonly(
          "shape_signature", [](const TensorView& t) { return tuple_of<Ints>(t.get().shape_signature); },
          "Like shape, -1 where dynamic; empty when nothing is.")
      .def_property_readonly(
          "quantized", [](const TensorView& t) { return t.get().quant.has_value(); },
          "Whether there are qparams.")
      .def_property_readonly(
          "scale",
          [](const TensorView& t) {
            return tuple_of<Floats>(t.get().quant ? t.get().quant->scale : std::vector<float>());
          })
      .def_property_readonly(
          "zero_point",
          [](const TensorView& t) {
            return tuple_of<Ints>(t.get().quant ? t.get().quant->zero_point : std::vector<int64_t>());
          })
      .def_property_readonly("axis",
                             [](const TensorView& t) { return t.get().quant ? t.get().quant->axis : 0; })
      .def_property_readonly("buffer", [](const TensorView& t) { return t.get().buffer; })
      .def_property_readonly("is_constant", [](const TensorView& t) { return t.model->is_constant(t.get()); })
      .def_property_readonly(
          "data",
          [](const TensorView& t) -> py::typing::Optional<py::memoryview> {
            if (!t.model->is_constant(t.get())) return py::none();
            return view_of(t.model, t.model->buffers[t.get().buffer].bytes);
          },
          "The constant's bytes, read-only and not copied; None when the tensor is not a constant.")
      .def("__repr__",
           [](const TensorView& t) { return text("<Tensor " + tensor_json_open(t.get()) + "}>"); });
  py::class_<OperatorView>(m, "Operator", "An operator of a Circle model.")
      .def_property_readonly("name", [](const OperatorView& o) { return text(op_name(o.get())); })
      .def_property_readonly("code", [](const OperatorView& o) { return o.get().code; })
      .def_property_readonly(
          "inputs", [](const OperatorView& o) { return tuple_of<Ints>(o.get().inputs); },
          "Tensor indices; -1: none.")
      .def_property_readonly("outputs", [](const OperatorView& o) { return tuple_of<Ints>(o.get().outputs); })
      .def_property_readonly("options",
                             [](const OperatorView& o) {
                               py::typing::Dict<py::str, py::object> out;
                               const Operator& op = o.get();
                               for (size_t i = 0; i < op.options.size(); ++i) {
                                 const Field& field = op.op->options->fields[i];
                                 out[field.name] = option_object(field, op.options[i]);
                               }
                               return out;
                             })
      .def("__repr__",
           [](const OperatorView& o) { return text("<Operator " + operator_json(o.get()) + ">"); });
}

// Of a file without a graph: an empty one.
const Graph& first(const ModelView& view) {
  static const Graph none;
  return view.model->graphs.empty() ? none : view.model->graphs[0];
}

void bind_model(py::module_& m) {
  py::class_<GraphView>(m, "Graph", "A subgraph of a Circle model.")
      .def_property_readonly("name", [](const GraphView& g) { return text(g.get().name); })
      .def_property_readonly("tensors",
                             [](const GraphView& g) {
                               return list_of<TensorView>(g.get().tensors.size(), [&](size_t i) {
                                 return py::cast(TensorView{g.model, g.index, i});
                               });
                             })
      .def_property_readonly("operators",
                             [](const GraphView& g) {
                               return list_of<OperatorView>(g.get().operators.size(), [&](size_t i) {
                                 return py::cast(OperatorView{g.model, g.index, i});
                               });
                             })
      .def_property_readonly("inputs", [](const GraphView& g) { return tuple_of<Ints>(g.get().inputs); })
      .def_property_readonly("outputs", [](const GraphView& g) { return tuple_of<Ints>(g.get().outputs); });
  py::class_<ModelView>(m, "Model", "A Circle file as it was read.")
      .def_property_readonly("version", [](const ModelView& v) { return v.model->version; })
      .def_property_readonly("description", [](const ModelView& v) { return text(v.model->description); })
      .def_property_readonly("file_size", [](const ModelView& v) { return v.model->file_size; })
      .def_property_readonly(
          "external",
          [](const ModelView& v) {
            for (const Buffer& buffer : v.model->buffers) {
              if (buffer.external) return true;
            }
            return false;
          },
          "Whether constants stand outside the flatbuffer.")
      .def_property_readonly(
          "graphs",
          [](const ModelView& v) {
            return list_of<GraphView>(v.model->graphs.size(),
                                      [&](size_t i) { return py::cast(GraphView{v.model, i}); });
          },
          "The subgraphs; name, tensors, operators, inputs and outputs of the model are those of the first.")
      .def_property_readonly("name", [](const ModelView& v) { return text(first(v).name); })
      .def_property_readonly("tensors",
                             [](const ModelView& v) {
                               return list_of<TensorView>(first(v).tensors.size(), [&](size_t i) {
                                 return py::cast(TensorView{v.model, 0, i});
                               });
                             })
      .def_property_readonly("operators",
                             [](const ModelView& v) {
                               return list_of<OperatorView>(first(v).operators.size(), [&](size_t i) {
                                 return py::cast(OperatorView{v.model, 0, i});
                               });
                             })
      .def_property_readonly("inputs", [](const ModelView& v) { return tuple_of<Ints>(first(v).inputs); })
      .def_property_readonly("outputs", [](const ModelView& v) { return tuple_of<Ints>(first(v).outputs); })
      .def_property_readonly(
          "signatures",
          [](const ModelView& v) {
            py::typing::Dict<py::str, py::typing::Tuple<Names, Names>> out;
            for (const Signature& s : v.model->signatures) {
              out[text(s.key)] = py::make_tuple(names_of(s.inputs), names_of(s.outputs));
            }
            return out;
          },
          "key -> (input name -> tensor, output name -> tensor)")
      .def_property_readonly("metadata",
                             [](const ModelView& v) {
                               py::typing::Dict<py::str, py::bytes> out;
                               for (const Metadata& entry : v.model->metadata) {
                                 const bool there = entry.buffer < v.model->buffers.size();
                                 const Bytes bytes = there ? v.model->buffers[entry.buffer].bytes : Bytes{};
                                 out[text(entry.name)] =
                                     py::bytes(reinterpret_cast<const char*>(bytes.data), bytes.size);
                               }
                               return out;
                             })
      .def(
          "check",
          [](const ModelView& v, const std::string& target) {
            return faults_of(check(*v.model, target_of(target)));
          },
          py::arg("target"), "(code, message, where) of each fault.")
      .def(
          "inspect",
          [](const ModelView& v, const std::string& title, bool as_json) {
            return text(as_json ? inspect_json(*v.model, title) : inspect_text(*v.model, title));
          },
          py::arg("title"), py::arg("as_json"))
      .def(
          "diff",
          [](const ModelView& v, const ModelView& other) {
            const auto lines = diff(*v.model, *other.model);
            return list_of<py::str>(lines.size(), [&](size_t i) { return text(lines[i]); });
          },
          py::arg("other"), "One line for each difference.");
}

}  // namespace
}  // namespace pyquant::circle

PYBIND11_MODULE(_circle, m) {
  namespace pc = pyquant::circle;
  m.doc() = "Circle files: the native reader, checker and inspector. Use pyquant.circle.";
  pc::bind_views(m);
  pc::bind_model(m);
  pyquant::bindings::bind_runner(m);
  m.def("read", &pc::read, py::arg("path"), "Maps and reads a file.");
  m.def("read_bytes", &pc::read_data, py::arg("data"), "Reads bytes.");
  m.def("check_plan", &pc::check_plan, py::arg("plan"), py::arg("sizes"), py::arg("target"),
        "(code, message, where) of each fault of plan text whose constants have these sizes in bytes.");
  m.def("write_plan", &pc::write_plan, py::arg("plan"), py::arg("sizes"), py::arg("known"), py::arg("give"),
        py::arg("path"),
        "Checks plan text and writes it; give(k) makes the buffers of constant k when it is written. "
        "Returns its bytes.");
  m.def("join_files", &pc::join_files, py::arg("keys"), py::arg("paths"), py::arg("path"),
        "Files of one graph each to one file of several; returns its bytes.");
  m.def("operators_json", &pc::operators_json, "The table ops.def as JSON text.");
  m.def(
      "codes",
      [] {
        py::typing::Dict<py::str, py::str> out;
        for (const pyquant::CodeInfo& code : pyquant::kCodes) out[code.name] = py::str(code.meaning);
        return out;
      },
      "Every fault code and what it means.");
}
