// SPDX-License-Identifier: Apache-2.0
// Every fault code has a case that produces it, and every message is one line with the place.
#include <set>
#include <string_view>

#include "check.h"
#include "fault_cases.h"

namespace {

std::vector<FaultCase> all_cases() {
  std::vector<FaultCase> cases = input_cases();
  for (auto list : {model_cases(), target_cases()}) cases.insert(cases.end(), list.begin(), list.end());
  return cases;
}

}  // namespace

TEST(sample_is_valid) {
  CHECK_EQ(sample::text(sample::faults(sample::model(), sample::Target::Circle)), "no faults");
  CHECK_EQ(sample::text(sample::faults(sample::model(), sample::Target::Luci)), "no faults");
}

TEST(each_case_gives_its_code) {
  for (const FaultCase& one : all_cases()) {
    const auto faults = one.produce();
    CHECK_MSG(sample::has(faults, one.code),
              std::string(pyquant::code_name(one.code)) + " expected, saw " + sample::text(faults));
    for (const auto& fault : faults) {
      CHECK_MSG(!fault.message.empty() && fault.text().find('\n') == std::string::npos, fault.text());
    }
  }
}

TEST(no_code_without_a_case) {
  std::set<pyquant::Code> produced;
  for (const FaultCase& one : all_cases()) produced.insert(one.code);
  for (size_t i = 0; i < std::size(pyquant::kCodes); ++i) {
    bool elsewhere = false;  // tests/cpp/run and tests/cpp/host have them
    for (const char* prefix : {"E_RUN_", "E_MANIFEST", "E_BUNDLE_FILE", "E_HOST_", "E_REPLAY"}) {
      elsewhere = elsewhere || std::string_view(pyquant::kCodes[i].name).rfind(prefix, 0) == 0;
    }
    if (elsewhere) continue;
    CHECK_MSG(produced.count(static_cast<pyquant::Code>(i)) > 0,
              std::string("no case for ") + pyquant::kCodes[i].name);
  }
}

TEST(a_case_gives_one_code_where_faults_do_not_follow_from_each_other) {
  size_t single = 0, all = 0;
  for (const FaultCase& one : model_cases()) {
    std::set<pyquant::Code> codes;
    for (const auto& fault : one.produce()) codes.insert(fault.code);
    single += codes.size() == 1;
    ++all;
  }
  // A wrong dtype, say, is wrong for the buffer's size and for the operator too; most edits are wrong in one
  // way.
  CHECK_MSG(single * 3 > all * 2, std::to_string(single) + " of " + std::to_string(all));
}
