# SPDX-License-Identifier: Apache-2.0
"""The native host against Python's, graph input by graph input, for every family: the manifest says all that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llama_tiny import ids, padded
from llama_tiny import tree as llama_tree
from qwen_bundle_tiny import GRIDS, A, B, C
from qwen_bundle_tiny import PROMPTS as QWEN_PROMPTS
from qwen_bundle_tiny import profile as qwen_profile
from qwen_bundle_tiny import tree as qwen_tree

from pyquant.decoder.host import Host
from pyquant.models import llama
from tests.models.eager_bundle import Eager
from tests.models.native_host import expect_same

GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
@pytest.mark.parametrize("lengths", [(3,), (8,), (11, 4)], ids=str)
def test_llama(layers: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    own = llama.Profile(max_seq_len=20, prefill_lengths=(4, 8), append_lengths=(3,), batch_size=len(lengths), layers=layers)
    eager = Eager(llama_tree()[1], own)
    expect_same(tmp_path, eager, Host(eager.manifest), padded(lengths, "left"), "--greedy", "--eos", "none",
                max_new_tokens=6, **GREEDY)
