// SPDX-License-Identifier: Apache-2.0
// A conversation with a bundle: each argument behind the folder is a turn, ids with commas between them, or
// ids@p.safetensors with what a processor made of its images. Prints the tokens that follow each.
#include <pyquant/generate.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

int fail(const pyquant::Fault& fault) {
  std::fprintf(stderr, "%s\n", fault.text().c_str());
  return 1;
}

std::vector<int64_t> ids_of(const std::string& text) {
  std::vector<int64_t> ids;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    const std::string word = text.substr(start, end - start);
    char* behind = nullptr;
    ids.push_back(std::strtoll(word.c_str(), &behind, 10));
    if (word.empty() || *behind != '\0') {
      std::fprintf(stderr, "'%s' is no token id\n", word.c_str());
      std::exit(2);
    }
    start = end + 1;
  }
  return ids;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: generate BUNDLE 1,2,3[@pixels.safetensors] [more turns]\n");
    return 2;
  }
  auto opened = pyquant::Generator::open(argv[1]);
  if (!opened.ok()) return fail(opened.fault());
  pyquant::Generator generator = std::move(opened).value();
  pyquant::Conversation conversation;
  for (int turn = 2; turn < argc; ++turn) {
    const std::string words = argv[turn];
    const size_t at = words.find('@');
    pyquant::Request request;
    request.prompts = {ids_of(words.substr(0, at))};
    if (at != std::string::npos) request.media_file = words.substr(at + 1);
    request.settings["max_new_tokens"] = 5;
    request.settings["do_sample"] = false;
    const auto answer = generator.generate(request, conversation);
    if (!answer.ok()) return fail(answer.fault());
    const auto& tokens = answer.value().tokens[0];
    for (size_t i = 0; i < tokens.size(); ++i)
      std::printf("%s%lld", i ? "," : "", static_cast<long long>(tokens[i]));
    std::printf("\n");
  }
  std::fprintf(stderr, "%zu of %lld tokens\n", conversation.tokens()[0].size(),
               static_cast<long long>(generator.max_seq_len()));
  return 0;
}
