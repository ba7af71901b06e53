// SPDX-License-Identifier: Apache-2.0
// What was written is what is read; operators that the table does not have survive.
#include <algorithm>

#include "check.h"
#include "circle/encode.h"
#include "circle/schema.h"
#include "sample.h"

using namespace pyquant::circle;  // NOLINT

namespace {

Model read(const std::vector<uint8_t>& file) {
  auto owner = std::make_shared<std::vector<uint8_t>>(file);
  auto model = read_bytes({owner->data(), owner->size()}, "test", owner);
  CHECK_MSG(model.ok(), model.ok() ? "" : model.fault().text());
  return model.ok() ? std::move(model).value() : Model();
}

}  // namespace

TEST(file_reads_back) {
  const Model a = sample::model(), b = read(sample::file());
  for (const std::string& line : diff(a, b)) CHECK_MSG(false, line);
  CHECK_EQ(b.operator_codes.size(), size_t{4});
  CHECK_EQ(b.version, 0u);
  CHECK_EQ(b.signatures[0].outputs[0].first, "z");
  CHECK_EQ(sample::text(sample::faults(b, Target::Luci)), "no faults");
}

TEST(constants_are_aligned) {
  const auto file = sample::file();
  for (const auto& buffer : read(file).buffers) {
    if (buffer.bytes.size == 0) continue;
    const auto owner = file;  // same content; find the bytes' place
    const auto at =
        std::search(owner.begin(), owner.end(), buffer.bytes.data, buffer.bytes.data + buffer.bytes.size);
    CHECK_EQ((at - owner.begin()) % 16, 0);
  }
}

TEST(bytes_at_an_odd_address) {
  const auto file = sample::file();
  std::vector<uint8_t> shifted(file.size() + 1);
  std::copy(file.begin(), file.end(), shifted.begin() + 1);
  const auto model = read_bytes({shifted.data() + 1, file.size()}, "odd");
  CHECK(model.ok());
  CHECK_EQ(sample::text(sample::faults(model.value(), Target::Circle)), "no faults");
}

TEST(every_operator_of_the_table_survives_plan_and_file) {
  for (const OpInfo& op : all_ops()) {
    Model m = sample::one_op("NEG", {{"float32", {2}}}, {{"float32", {2}}});
    Operator& o = m.graphs[0].operators[0];
    o.op = &op;
    o.code = op.code;
    o.options_type = op.options->value;
    o.has_options = o.options_type != 0;
    o.options.clear();
    for (const Field& field : op.options->fields) {
      switch (field.kind) {
        case FieldKind::Bool:
          o.options.emplace_back(field.initial == 0);
          break;
        case FieldKind::Float:
          o.options.emplace_back(0.25f);
          break;
        case FieldKind::Ints:
          o.options.emplace_back(std::vector<int32_t>{3, -1});
          break;
        default:
          o.options.emplace_back(int64_t{1});
      }
    }
    const check::Context here(op.name);
    const std::string text = dump_plan(m).value().json;
    CHECK_EQ(dump_plan(parse_plan(text, op.name).value().model).value().json, text);
    // The operands do not fit, which the writer would refuse, so only the head of the file is made.
    auto head = encode_head(m, false);
    const Model back = read(head.value().bytes);
    CHECK_EQ(dump_plan(back).value().json, text);
    CHECK_EQ(int{back.operator_codes[0].deprecated}, std::min(op.code, 127));
  }
}

TEST(unknown_operators_have_names) {
  Operator op;
  op.code = 15;
  CHECK_EQ(op_name(op), "LSH_PROJECTION");
  op.code = 32;
  op.custom_code = "mine";
  CHECK_EQ(op_name(op), "CUSTOM(mine)");
  op.code = 9999;
  op.custom_code.clear();
  CHECK_EQ(op_name(op), "operator 9999");
  CHECK_EQ(schema_options_name(9), "SoftmaxOptions");
  Model m = sample::model();
  m.graphs[0].operators[1].op = nullptr;
  m.graphs[0].operators[1].code = 209;
  m.graphs[0].operators[1].options.clear();
  CHECK(inspect_text(m, "x").find("STABLEHLO_CASE(y) -> s") != std::string::npos);
  CHECK(inspect_json(m, "x").find("STABLEHLO_CASE") != std::string::npos);
}

TEST(diff_says_what_differs) {
  const Model a = sample::model();
  Model b = a;
  static const uint8_t other[12] = {9};
  b.buffers[1].bytes.data = other;
  b.graphs[0].tensors[3].quant->scale[0] = 0.25f;
  b.graphs[0].operators[1].options[0] = 2.0f;
  b.graphs[0].tensors[5].name = "order";
  const auto lines = diff(a, b);
  const auto seen = [&lines](const std::string& part) {
    return std::any_of(lines.begin(), lines.end(),
                       [&](const std::string& l) { return l.find(part) != std::string::npos; });
  };
  CHECK(seen("tensor 'w' data: 12 of 12 bytes differ"));
  CHECK(seen("tensor 'y' qparams: scale 0.5, zero_point 128 -> scale 0.25, zero_point 128"));
  CHECK(seen("operator SOFTMAX of 's' options: beta=1 -> beta=2"));
  CHECK(seen("tensor 'perm': only in the first"));
  CHECK(seen("operator TRANSPOSE of 't' inputs: s, perm -> s, order"));
}
