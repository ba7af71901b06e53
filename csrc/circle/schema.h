// SPDX-License-Identifier: Apache-2.0
// Names that only the generated schema has, behind plain functions, so that few files include
// circle_generated.h.
#pragma once

#include <cstdint>
#include <string>

namespace pyquant::circle {

/// The schema's name of any BuiltinOperator; "operator 999" for a number that it does not have.
std::string schema_op_name(int32_t code);
/// The schema's name of any BuiltinOptions value.
std::string schema_options_name(uint8_t value);
/// The schema's name of any QuantizationDetails value.
std::string schema_details_name(uint8_t value);

}  // namespace pyquant::circle
