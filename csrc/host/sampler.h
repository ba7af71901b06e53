// SPDX-License-Identifier: Apache-2.0
// The next token of a row from its logits: penalties in transformers' order and in float32, then the most
// likely token, or a random one.
//
// A token of score s has the integer weight round(2^40 exp(s - the highest score)), computed in double. Sums
// of weights are exact, so that top_p, min_p and the drawn token do not depend on the order of additions, and
// a last bit of exp that differs from one machine to another changes a weight once in thousands of tokens, by
// 1 in 2^40.
#pragma once

#include <vector>

#include "host/random.h"
#include "host/settings.h"

namespace pyquant::host {

/// Changes the scores (vocabulary) as the settings ask, given all tokens of the row and how many of these are
/// new.
void penalize(const Settings& settings, const std::vector<int64_t>& tokens, int64_t new_tokens,
              std::vector<float>& scores);
/// The chosen token.
int64_t choose(const Settings& settings, std::vector<float>& scores, Random& random);

}  // namespace pyquant::host
