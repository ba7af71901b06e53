// SPDX-License-Identifier: Apache-2.0
// Every truncation and many random edits of valid files: a code or a model, never a crash. Meant to run under
// sanitizers (preset `sanitize`); the same functions stand behind libFuzzer in tests/fuzz.
#include <cstdlib>
#include <random>

#include "check.h"
#include "sample.h"
#include "targets.h"

namespace {

using Bytes = std::vector<uint8_t>;

Bytes external_file() {
  const sample::TempFolder folder;
  const std::string path = folder / "x.circle";
  const auto written = pyquant::circle::write_file(sample::model(), path, sample::Target::Circle,
                                                   pyquant::circle::Layout::External);
  CHECK(written.ok() && written.value().external);
  return sample::read_all(path);
}

Bytes weights_file() {
  const sample::TempFolder folder;
  const std::string path = folder / "w.safetensors";
  const Bytes data(12, 7);
  CHECK(pyquant::circle::write_safetensors(
            {{"a", "U8", {3}, {data.data(), 3}}, {"b", "I16", {2, 2}, {data.data(), 8}}}, path)
            .ok());
  return sample::read_all(path);
}

Bytes text_bytes(const std::string& text) { return {text.begin(), text.end()}; }

// Changes, removes, doubles or swaps a few bytes.
Bytes mutate(Bytes bytes, std::mt19937& random, const std::string& alphabet) {
  const auto below = [&random](size_t n) { return n == 0 ? 0 : random() % n; };
  const size_t edits = 1 + below(4);
  for (size_t e = 0; e < edits && !bytes.empty(); ++e) {
    const size_t at = below(bytes.size());
    const auto place = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const auto fresh = static_cast<uint8_t>(alphabet.empty() ? random() : alphabet[below(alphabet.size())]);
    switch (below(alphabet.empty() ? 4 : 5)) {
      case 0:
        *place = fresh;
        break;
      case 1:
        *place ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 2:
        *place = static_cast<uint8_t>(below(3) - 1);  // 0, 1 and 255 are what lengths and indices trip over
        break;
      case 3:
        std::swap(*place, bytes[below(bytes.size())]);
        break;
      default:
        if (below(2)) {
          bytes.insert(place, fresh);
        } else {
          bytes.erase(place);
        }
    }
  }
  return bytes;
}

// Runs `target` on every truncation and on `rounds` edits of `seed`; some edits must be accepted, or they
// test little.
void storm(const Bytes& seed, bool (*target)(const uint8_t*, size_t), size_t rounds,
           const std::string& alphabet = "") {
  CHECK(target(seed.data(), seed.size()));
  for (size_t size = 0; size < seed.size(); ++size) target(seed.data(), size);
  // A longer hunt: PYQUANT_MUTATIONS=<times as many> test_circle mutated
  const char* times = std::getenv("PYQUANT_MUTATIONS");
  rounds *= times ? std::strtoul(times, nullptr, 10) : 1;
  std::mt19937 random(20250101);
  size_t accepted = 0;
  for (size_t i = 0; i < rounds; ++i) {
    const Bytes bytes = mutate(seed, random, alphabet);
    accepted += target(bytes.data(), bytes.size());
  }
  CHECK_MSG(accepted * 50 > rounds,
            std::to_string(accepted) + " of " + std::to_string(rounds) + " edits accepted");
}

const char kJson[] = "{}[]\":,0123456789.-+eE truefalsnl\\u/";

}  // namespace

TEST(mutated_circle_file) { storm(sample::file(), fuzz::circle_file, 20000); }
TEST(mutated_external_circle_file) { storm(external_file(), fuzz::circle_file, 10000); }
TEST(mutated_plan) { storm(text_bytes(sample::plan_text()), fuzz::plan_text, 20000, kJson); }
TEST(mutated_weights_file) { storm(weights_file(), fuzz::weights_file, 20000, kJson); }

TEST(a_truncated_file_is_refused) {
  const Bytes file = sample::file();
  size_t read = 0;
  for (size_t size = 0; size < file.size(); ++size) read += fuzz::circle_file(file.data(), size);
  CHECK_EQ(read, size_t{0});
}
