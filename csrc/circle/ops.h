// SPDX-License-Identifier: Apache-2.0
// The table of operators (ops.def) as data: look up an operator by name or code, its operands, options and
// rules. What the rules mean is left to check/; how options are laid out in a file, to encode.cc and
// decode.cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pyquant::circle {

enum class FieldKind : uint8_t { Bool, Int, Float, Ints, Activation, Padding, WeightsFormat, Type, RoPEMode };
enum class OpKind : uint8_t { Arith, Move, Weighted, Compare, Index, Convert };
enum class LuciRule : uint8_t {
  None,          // ONE's verifier has no rule
  Group,         // output and inputs of one quantized type
  Fixed,         // Group, and fixed output qparams
  IntegerScale,  // Group, and an integer output scale
  Weights,       // output, input and weights of one type, bias int32 / int64
  Indexed,       // output and data of one type, index operands int32
  IndexedWide,   // the same, index operands int32 or int64
  Same,          // outputs share the qparams of the input
  Comparison,    // bool output, inputs of one type
  Concat,        // Group, or int32 / int64 throughout
  Cast,          // types are those of the options
};

/// One field of an options table.
struct Field {
  const char* name;
  uint16_t slot;  // in declaration order of the schema; the vtable offset is 4 + 2 * slot
  FieldKind kind;
  int initial;  // the schema's default
};

struct OptionsTable {
  const char* name;
  uint8_t value;  // in the union BuiltinOptions; 0: the operator has no table
  std::vector<Field> fields;
};

/// One operand of an operator.
struct Operand {
  char role;         // x w b i c a, see ops.def
  bool may_be_none;  // present, but -1 is allowed
  bool may_be_absent;
  bool repeats;  // one or more
};

struct OpInfo {
  const char* name;
  int32_t code;
  const OptionsTable* options;
  std::vector<Operand> inputs;
  std::vector<Operand> outputs;
  OpKind kind;
  std::string_view dtypes;
  LuciRule luci;
  std::string_view onert;

  size_t min_inputs() const;
  size_t max_inputs() const;
  size_t min_outputs() const;
  size_t max_outputs() const;
  /// Role of input i; the last operand answers for all that repeat.
  const Operand& input(size_t i) const { return inputs[i < inputs.size() ? i : inputs.size() - 1]; }
  const Operand& output(size_t i) const { return outputs[i < outputs.size() ? i : outputs.size() - 1]; }
  /// Index of an option, or -1.
  int option(std::string_view field) const;
};

/// All operators, in the order of ops.def.
const std::vector<OpInfo>& all_ops();
const OpInfo* op_by_name(std::string_view name);
const OpInfo* op_by_code(int32_t code);

/// Spellings of an enum field, indexed by value where the values are 0, 1, 2 ...; empty for fields that are
/// no enum.
struct EnumName {
  const char* name;
  int value;
};
const std::vector<EnumName>& enum_names(FieldKind kind);
const char* kind_name(FieldKind kind);
const char* kind_name(OpKind kind);

}  // namespace pyquant::circle
