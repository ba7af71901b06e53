// SPDX-License-Identifier: Apache-2.0
// The loop: prompts in parts, rows that end, conversations, the cache as a ring, tensors as a graph stores
// them.
#include <algorithm>

#include "check.h"
#include "toy.h"

using namespace toy;  // NOLINT

namespace {

std::string joined_text(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

std::vector<float> keys_of(const Echo& echo, const char* name) {
  const Tensor& keys = echo.seen.at("decode").at(name);
  std::vector<float> found;
  for (int64_t i = 0; i < keys.count(); i += 2) found.push_back(keys.floats()[i]);
  return found;
}

}  // namespace

TEST(a_prompt_goes_through_prefill_append_and_decode) {
  Echo echo;
  const auto generator = Generator::create(manifest(), echo, "");
  const auto made = generator.value()->generate(request({{1, 2, 3, 4, 5, 6}}, 3));
  CHECK_MSG(made.ok(), made.ok() ? "" : made.fault().text());
  CHECK(made.value().tokens == TokenRows({{7, 8, 9}}));
  CHECK_EQ(joined_text(echo.calls),
           "token_embedding prefill_s4 token_embedding append_s2 lm_head token_embedding decode lm_head "
           "token_embedding decode lm_head");
  // The last decode: 7 tokens in the cache, of which the ring of 2 slots has the last.
  CHECK(keys_of(echo, "past_key_1") == std::vector<float>({1, 2, 3, 4, 5, 6, 7, 0, 0}));
  CHECK(keys_of(echo, "past_key_0") == std::vector<float>({7, 6}));
  const Tensor& near = echo.seen.at("decode").at("attention_mask_near");
  const Tensor& far = echo.seen.at("decode").at("attention_mask_far");
  CHECK(std::count(near.floats(), near.floats() + 3, 0.0f) == 3);
  CHECK(std::count(far.floats(), far.floats() + 10, 0.0f) == 8);
  CHECK_EQ(far.floats()[7], -100.0f);
}

TEST(an_end_token_ends_a_row_and_the_others_go_on) {
  Echo echo;
  const auto generator = Generator::create(manifest(2), echo, "");
  const auto made = generator.value()->generate(request({{13}, {3, 4}}, 5));
  CHECK_MSG(made.ok(), made.ok() ? "" : made.fault().text());
  CHECK(made.value().tokens == TokenRows({{14, 15}, {5, 6, 7, 8, 9}}));
  CHECK(made.value().ended[0] && !made.value().ended[1]);
  // Row 0 got padding from then on, which its cache does not have.
  CHECK_EQ(echo.seen.at("token_embedding").at("input_ids").ints()[0], 0);
  CHECK_EQ(keys_of(echo, "past_key_1")[2], 0.0f);
}

TEST(a_conversation_is_one_prompt) {
  for (const bool stored : {false, true}) {
    Echo turns(stored), whole(stored);
    const auto first = Generator::create(manifest(), turns, ""),
               second = Generator::create(manifest(), whole, "");
    Conversation conversation;
    auto made = first.value()->generate(request({{1, 2}}, 2), &conversation);
    CHECK(made.ok() && made.value().tokens == TokenRows({{3, 4}}));
    made = first.value()->generate(request({{9}}, 3), &conversation);
    CHECK_MSG(made.ok(), made.ok() ? "" : made.fault().text());
    CHECK(made.value().tokens == TokenRows({{10, 11, 12}}));
    CHECK(conversation.tokens == TokenRows({{1, 2, 3, 4, 9, 10, 11, 12}}));
    CHECK(second.value()->generate(request({{1, 2, 3, 4, 9}}, 3)).ok());
    for (const auto& [name, tensor] : whole.seen.at("decode")) {
      CHECK_MSG(tensor.bytes == turns.seen.at("decode").at(name).bytes, name);
    }
    // A turn that does not fit leaves the conversation as it was.
    CHECK(!first.value()->generate(request({{1, 2, 3}}, 1), &conversation).ok());
    CHECK_EQ(conversation.tokens[0].size(), size_t{8});
    CHECK_EQ(int{conversation.cache->layers[0].keys.type == Type::Int16}, int{stored});
  }
}

TEST(what_does_not_fit_is_refused) {
  struct Case {
    TokenRows prompts;
    int64_t most;
    const char* expected;
  };
  const Case cases[] = {
      {{{1}, {2}}, 1, "got 2 prompt(s), this bundle was exported with batch_size=1"},
      {{{}}, 1, "prompt 0 is empty"},
      {{{-1}}, 1, "the token id -1 is none"},
      {{{16}}, 1, "would have the token id 16, out of the range 0 to 15"},
      {{{1, 2, 3}}, 9, "a prompt of 3 tokens and max_new_tokens=9 need a cache longer than max_seq_len 10"},
      {{{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}, 1, "11 tokens are more than max_seq_len 10"},
  };
  Echo echo;
  const auto generator = Generator::create(manifest(), echo, "");
  for (const Case& one : cases) {
    const auto made = generator.value()->generate(request(one.prompts, one.most));
    CHECK(!made.ok());
    if (made.ok()) continue;
    CHECK_EQ(std::string(code_name(made.fault().code)), "E_HOST_INPUT");
    CHECK_MSG(made.fault().text().find(one.expected) != std::string::npos, made.fault().text());
  }
}

TEST(a_graph_that_the_manifest_does_not_explain_is_refused) {
  Echo echo;
  const std::string text = manifest_text({{"\"name\": \"cos_near\"", "\"name\": \"cosine\""}});
  auto read = parse_manifest(text, "m");
  const auto generator = Generator::create(std::move(read).value(), echo, "");
  const auto made = generator.value()->generate(request({{1}}, 1));
  CHECK_MSG(!made.ok() && made.fault().text().find("takes 'cosine', and the manifest does not say") !=
                              std::string::npos,
            made.ok() ? "ran" : made.fault().text());
  const std::string headless = manifest_text({{"\"kind\": \"lm_head\"", "\"kind\": \"other\""}});
  auto other = parse_manifest(headless, "m");
  CHECK(!Generator::create(std::move(other).value(), echo, "").ok());
}
