// SPDX-License-Identifier: Apache-2.0
// Manifests with numbers, names and entries changed at random: whatever parses generates, or says why not;
// nothing is read or written beside a tensor (the sanitizers see it).
#include <cctype>
#include <cstdlib>

#include "check.h"
#include "host/random.h"
#include "toy.h"

using namespace toy;  // NOLINT

namespace {

/// The text with one number, name or entry replaced.
std::string mutated(std::string text, Random& random) {
  static const char* const kNumbers[] = {"0",       "1",           "2",   "3",    "7", "-1",
                                         "1048576", "99999999999", "0.5", "null", "[]"};
  const size_t start = random.below(text.size());
  if (random.below(3) == 0) {  // a name becomes another of the text
    const size_t first = text.find('"', start), end = text.find('"', first + 1);
    const size_t other = text.find('"', random.below(text.size())), stop = text.find('"', other + 1);
    if (first == std::string::npos || end == std::string::npos) return text;
    if (other == std::string::npos || stop == std::string::npos) return text;
    const std::string name = text.substr(other, stop - other + 1);
    return text.replace(first, end - first + 1, name);
  }
  const size_t first = text.find_first_of("0123456789", start);
  if (first == std::string::npos) return text;
  const size_t end = text.find_first_not_of("0123456789.", first);
  return text.replace(first, end - first, kNumbers[random.below(std::size(kNumbers))]);
}

}  // namespace

TEST(mutated_manifests_generate_or_say_why_not) {
  Random random(11);
  const char* times = std::getenv("PYQUANT_MUTATIONS");  // so many times as many
  const int rounds = 4000 * (times ? std::atoi(times) : 1);
  int parsed = 0, answered = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string text = manifest_text({}, 1 + round % 2);
    for (uint64_t i = 0; i <= random.below(3); ++i) text = mutated(text, random);
    auto read = parse_manifest(text, "m");
    if (!read.ok()) continue;
    ++parsed;
    if (read.value().batch > 4) continue;
    const auto batch = static_cast<size_t>(read.value().batch);
    Echo echo(round % 3 == 0);
    const auto generator = Generator::create(std::move(read).value(), echo, "");
    if (!generator.ok()) continue;
    answered += generator.value()->generate(request(TokenRows(batch, {1, 2, 3, 4, 5}), 4)).ok();
  }
  CHECK_MSG(parsed > 500 && answered > 100, std::to_string(parsed) + " " + std::to_string(answered));
}
