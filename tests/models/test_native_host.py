# SPDX-License-Identifier: Apache-2.0
"""The native host against Python's, graph input by graph input, for every family: the manifest says all it needs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_tiny import padded
from llama_tiny import tree as llama_tree
from qwen_bundle_tiny import GRIDS, A, B, C, Eager
from qwen_bundle_tiny import PROMPTS as QWEN_PROMPTS
from qwen_bundle_tiny import profile as qwen_profile
from qwen_bundle_tiny import tree as qwen_tree
from qwen_model_tiny import batch
from torch import Tensor

from pyquant.decoder.host import Host
from pyquant.decoder.row_table import RowTable
from pyquant.decoder.turn import Past
from pyquant.errors import PyquantError
from pyquant.models import llama
from pyquant.models.gemma4 import table
from pyquant.models.gemma4.whole_host import host as gemma_host
from pyquant.models.qwen3_vl.host import host as qwen_host
from tests.models import gemma4_bundle_tiny as gemma
from tests.models.eager_bundle import Eager as EagerBundle
from tests.models.native_host import Recorder, expect_same, media_file, native, rows_of

GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
WORDS = ("--greedy", "--eos", "none")


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
@pytest.mark.parametrize("lengths", [(3,), (8,), (11, 4)], ids=str)
def test_llama(layers: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    own = llama.Profile(
        max_seq_len=20, prefill_lengths=(4, 8), append_lengths=(3,), batch_size=len(lengths), layers=layers
    )
    eager = EagerBundle(llama_tree()[1], own)
    given = padded(lengths, "left")
    expect_same(tmp_path, eager, Host(eager.manifest), given, *WORDS, max_new_tokens=6, **GREEDY)


def test_rows_that_end_get_padding_and_penalties_are_transformers(tmp_path: Path) -> None:
    eager = EagerBundle(llama_tree()[1], llama.Profile(max_seq_len=32, prefill_lengths=(8,), batch_size=2))
    given = padded((7, 7), "left")
    free = Host(eager.manifest).generate(eager, **given, max_new_tokens=12, **GREEDY)[:, 7:]
    end = int(free[0, 3])
    options = {"do_sample": False, "eos_token_id": [end, 59], "repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    words = ["--greedy", "--eos", f"{end},59", "--repetition-penalty", "1.4", "--no-repeat-ngram-size", "2"]
    for least in (0, 9):
        more = {"min_new_tokens": least} if least else {}
        own = [*words, "--min-new-tokens", least] if least else words
        expect_same(tmp_path, eager, Host(eager.manifest), given, *own, max_new_tokens=12, **options, **more)


class Documented:
    """docs/native-program.md, `--seed`, written again: SplitMix64 for each row, integer weights of 40 bits."""

    MASK = (1 << 64) - 1

    def __init__(self, seed: int, rows: int, temperature: float, top_k: int, top_p: float) -> None:
        self.states = [(self.mixed(seed) + self.mixed(row + 1)) & self.MASK for row in range(rows)]
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def mixed(self, value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & self.MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & self.MASK
        return value ^ (value >> 31)

    def below(self, row: int, bound: int) -> int:
        while True:
            self.states[row] = (self.states[row] + 0x9E3779B97F4A7C15) & self.MASK
            value = self.mixed(self.states[row])
            if value >= (1 << 64) % bound:
                return value % bound

    def __call__(self, scores: Tensor, tokens: Tensor) -> Tensor:
        found = []
        for row, given in enumerate(scores):
            values = given / self.temperature
            kept = values >= values.topk(self.top_k).values[-1]
            order = sorted(kept.nonzero()[:, 0].tolist(), key=lambda i: (float(values[i]), -i))
            highest = float(values[order[-1]])
            weights = [math.floor(2**40 * math.exp(float(values[i]) - highest) + 0.5) for i in order]
            below, rare = 0, set()
            for place, weight in enumerate(weights[:-1]):
                below += weight
                if below <= (1 - self.top_p) * sum(weights):
                    rare.add(place)
            left = [(i, w) for place, (i, w) in enumerate(zip(order, weights, strict=True)) if place not in rare]
            drawn = self.below(row, sum(weight for _, weight in left))
            for token, weight in reversed(left):
                if drawn < weight:
                    found.append(token)
                    break
                drawn -= weight
        return torch.tensor(found)


def test_tokens_of_a_seed(tmp_path: Path) -> None:
    eager = EagerBundle(llama_tree()[1], llama.Profile(max_seq_len=32, prefill_lengths=(8,), batch_size=2))
    sampler = Documented(seed=5, rows=2, temperature=float(torch.tensor(3.5)), top_k=20, top_p=0.9)
    words = ["--eos", "none", "--temperature", 3.5, "--top-k", 20, "--top-p", 0.9, "--seed", 5]
    given = padded((6, 6), "left")
    options: dict[str, Any] = {"max_new_tokens": 16, "eos_token_id": None, "sampler": sampler}
    expect_same(tmp_path, eager, Host(eager.manifest), given, *words, **options)


# --- images whose positions have three axes ---


@pytest.mark.parametrize("layout", ["stack", "per_layer", "appended"])
@pytest.mark.parametrize("prompt", QWEN_PROMPTS)
def test_grids(layout: str, prompt: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"layers": "per_layer"} if layout == "per_layer" else {}
    if layout == "appended":
        changes = {"prefill_lengths": (4,), "append_lengths": (3, 5), "max_seq_len": 40}
    eager = Eager(qwen_tree()[1], qwen_profile(**changes))
    given = batch(QWEN_PROMPTS[prompt])
    expect_same(tmp_path, eager, eager.host(), given, *WORDS, max_new_tokens=4, **GREEDY)


@pytest.mark.parametrize("side", ["left", "right"])
def test_grids_in_rows_of_unequal_length(side: str, tmp_path: Path) -> None:
    eager = Eager(qwen_tree()[1], qwen_profile(batch_size=2, token_embedding="fixed"))
    given = batch((1, A, 2), (C, 3, B), side=side)
    expect_same(tmp_path, eager, eager.host(), given, *WORDS, max_new_tokens=4, **GREEDY)


def test_a_video_by_a_grid_of_its_own(tmp_path: Path) -> None:
    eager = Eager(qwen_tree()[1], qwen_profile(image_grids=((2, 4, 2), (1, 4, 2))))
    given = batch(QWEN_PROMPTS["video"])
    made = expect_same(tmp_path, eager, eager.host(), given, *WORDS, max_new_tokens=2, **GREEDY)
    assert "vision_t2_h4_w2" in made.calls


WHOLE: dict[str, tuple[Any, ...]] = {
    "two_images": ((2, A, 1, C, 1),),
    "text": ((6,),),
    "image_and_video": ((1, C, ("video", (2, 4, 2)), 1),),
    "rows": ((1, A, 2), (5,)),
}


@pytest.mark.parametrize("case", WHOLE)
def test_grids_in_one_graph(case: str, tmp_path: Path) -> None:
    given = batch(*WHOLE[case], side="left")
    found = (given.get(f"{kind}_grid_thw", torch.zeros(0, 3)) for kind in ("image", "video"))
    grids = tuple(tuple(map(int, grid)) for each in found for grid in each)
    own = qwen_profile(
        layers="whole", max_seq_len=24, prefill_lengths=(), image_grids=grids, batch_size=len(WHOLE[case])
    )
    eager = Eager(qwen_tree()[1], own)
    expect_same(tmp_path, eager, eager.host(), given, *WORDS, max_new_tokens=4, **GREEDY)


def test_grids_named_by_the_caller(tmp_path: Path) -> None:
    """Pixels without sizes beside them."""
    eager = Eager(qwen_tree()[1], qwen_profile())
    given = batch((2, A, 1, C))
    recorder = Recorder(eager)
    eager.host().generate(recorder, **given, max_new_tokens=2, **GREEDY)
    recorder.save(tmp_path)
    words = media_file(tmp_path, {"pixel_values": given["pixel_values"]})
    ids = rows_of(given["input_ids"], None)
    grids = ",".join("x".join(map(str, grid)) for grid in (A, C))
    done = native(tmp_path, "--ids", ids, *words, "--grid", grids, "--max-new-tokens", 2, *WORDS)
    assert done.returncode == 0, done.stderr
    done = native(tmp_path, "--ids", ids, *words, "--grid", "x".join(map(str, A)), "--max-new-tokens", 2, *WORDS)
    assert done.returncode == 2
    assert "which are not the patches of 1 item(s) of 'image_grid_thw' in turn" in done.stderr


@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
def test_a_conversation(family: str, tmp_path: Path) -> None:
    lengths: dict[str, Any] = {"max_seq_len": 40, "prefill_lengths": (8,), "append_lengths": (3, 5)}
    eager = EagerBundle(llama_tree()[1], llama.Profile(**lengths))
    host, turns = Host(eager.manifest), [{"input_ids": torch.tensor([row])} for row in ([5, 6, 7], [8], [9, 3, 1, 4])]
    if family == "qwen3_vl":
        eager = Eager(qwen_tree()[1], qwen_profile(**lengths))
        host, turns = eager.host(), [batch((2, A, 1)), batch((3,)), batch((1,))]
    past, recorder, expected = Past(), Recorder(eager), []
    options = {**GREEDY, "max_new_tokens": 3, "repetition_penalty": 1.3}
    for turn in turns:
        whole = host.generate(recorder, **turn, past=past, **options)
        expected.append(whole[0, -3:].tolist())
    recorder.save(tmp_path)
    lines = [rows_of(turn["input_ids"], None) for turn in turns]
    given = media_file(tmp_path, turns[0])
    words = ["--max-new-tokens", 3, "--repetition-penalty", "1.3", *WORDS]
    done = native(tmp_path, "--chat", *given, *words, turns=lines)
    assert done.returncode == 0, done.stderr
    assert [[int(token) for token in line.split(",")] for line in done.stdout.splitlines()] == expected


def test_a_conversation_with_images_in_each_turn(tmp_path: Path) -> None:
    """As lines of JSON, or with the first turn's by --pixels."""
    eager = Eager(qwen_tree()[1], qwen_profile(max_seq_len=40, prefill_lengths=(8,), append_lengths=(3, 5)))
    host, turns = eager.host(), [batch((2, A, 1)), batch((3,)), batch((1, C, B, 2))]
    past, recorder, expected, lines = Past(), Recorder(eager), [], list[str]()
    options = {**GREEDY, "max_new_tokens": 3, "suppress_tokens": list(range(60, 64))}  # no placeholders
    for number, turn in enumerate(turns):
        expected.append(host.generate(recorder, **turn, past=past, **options)[0, -3:].tolist())
        given = media_file(tmp_path, turn, f"turn{number}.safetensors")
        line = {"ids": turn["input_ids"][0].tolist()} | ({"pixels": given[1]} if given else {})
        lines.append(json.dumps(line))
    recorder.save(tmp_path, generation={"suppress_tokens": list(range(60, 64))})
    words = ["--chat", "--max-new-tokens", 3, *WORDS]
    first = ["--pixels", tmp_path / "turn0.safetensors"]
    plain = [rows_of(turns[0]["input_ids"], None), rows_of(turns[1]["input_ids"], None), lines[2]]
    for more, given in (([], lines), (first, plain)):
        done = native(tmp_path, *words, *more, turns=given)
        assert done.returncode == 0, done.stderr
        assert [[int(token) for token in line.split(",")] for line in done.stdout.splitlines()] == expected
    for given, told in (
        (lines, 'the first turn has "pixels", and --pixels has its images too'),
        (['{"ids": [1], "images": "x"}'], 'a turn has "images", expected ids, pixels and grid'),
        (['{"ids": [1, "a"]}'], '"ids" has a string, expected a token id'),
        (['{"ids": [1], "pixels": 3}'], '"pixels" of a turn is a number, expected a string'),
        (['{"ids": [1], "grid": "1x4x4"}'], 'a turn has "grid" without "pixels"'),
        (['{"pixels": "x"}'], 'a turn has no list "ids"'),
    ):
        done = native(tmp_path, *words, *first, turns=given)
        assert done.returncode == 2
        assert told in done.stderr


# --- windows, shared keys, per-layer inputs, images that see themselves, audio ---


OPTIONS: dict[str, Any] = {**GREEDY, "pad_token_id": 0, "repetition_penalty": 3.0}
GEMMA_WORDS = (*WORDS, "--repetition-penalty", "3")
NEW = 10  # past the wrap of a ring


def gemma_eager(form: str = "e2b", **changes: Any) -> EagerBundle:
    return EagerBundle(gemma.tree(form=form)[1], gemma.profile(**changes))


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
@pytest.mark.parametrize("prompt", gemma.PROMPTS)
def test_windows_and_towers(layers: str, prompt: str, tmp_path: Path) -> None:
    eager, given = gemma_eager(layers=layers), gemma.given(prompt, seed=5)
    expect_same(tmp_path, eager, gemma_host(eager.manifest), given, *GEMMA_WORDS, max_new_tokens=NEW, **OPTIONS)


GEMMA: dict[str, tuple[str, dict[str, Any]]] = {
    "full_masks": ("all", {"sliding": "full"}),
    "fixed_embeddings": ("all", {"token_embedding": "fixed"}),
    "frames_at_once": ("video", {"video_frames": 2}),
    "appended": ("all", {"prefill_lengths": (5,), "append_lengths": (3, 6)}),
    "appended_layers": ("audio", {"prefill_lengths": (5,), "append_lengths": (3, 6), "layers": "per_layer"}),
    "table_by_layers": ("all", {"per_layer_table": "layers"}),
    "table_by_rows": ("all", {"per_layer_table": "rows"}),
}


@pytest.mark.parametrize("case", GEMMA)
def test_layouts(case: str, tmp_path: Path) -> None:
    prompt, changes = GEMMA[case]
    eager = gemma_eager(**changes)
    given = gemma.given(prompt, seed=6)
    expect_same(tmp_path, eager, gemma_host(eager.manifest), given, *GEMMA_WORDS, max_new_tokens=NEW, **OPTIONS)


def test_rows_with_different_media(tmp_path: Path) -> None:
    eager = gemma_eager(batch_size=4)
    given = gemma.joined(["adjacent", "short", "audio", "long"], seed=3)
    host = gemma_host(eager.manifest)
    options, words = {**OPTIONS, "repetition_penalty": 1.0}, WORDS  # transformers' penalty counts padding
    expect_same(tmp_path, eager, host, given, *words, max_new_tokens=NEW, **options)


@pytest.mark.parametrize("prompt", ["adjacent", "all", "image_last"])
def test_images_that_see_themselves(prompt: str, tmp_path: Path) -> None:
    eager, given = gemma_eager("vision"), gemma.given(prompt, seed=8)
    expect_same(tmp_path, eager, gemma_host(eager.manifest), given, *GEMMA_WORDS, max_new_tokens=NEW, **OPTIONS)


def test_towers_in_one_graph(tmp_path: Path) -> None:
    given = gemma.given("all", seed=9)
    _, images, frames, clips = gemma.PROMPTS["all"]
    eager = gemma_eager(
        layers="whole",
        image_shapes=(*images, *[gemma.FRAME] * frames),
        audio_lengths=tuple(clip + 1 for clip in clips),
        prefill_lengths=(),
    )
    expect_same(tmp_path, eager, gemma_host(eager.manifest), given, *GEMMA_WORDS, max_new_tokens=5, **OPTIONS)


class WithTable(EagerBundle):
    """Rows of a file beside the graphs are read by the host itself."""

    def __init__(self, q: Any, profile: Any, folder: Path) -> None:
        super().__init__(q, profile)
        for name, write in profile.files(q).items():
            write(folder / name)
        self.table = RowTable(folder / table.FILE, self.manifest["tables"][table.NAME])


def test_a_table_beside_the_graphs(tmp_path: Path) -> None:
    eager = WithTable(gemma.tree()[1], gemma.profile(per_layer_table="host"), tmp_path)
    given, recorder = gemma.given("all", seed=4), Recorder(eager)

    def run(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return eager.table.run(inputs) if name == table.NAME else recorder(name, inputs)

    gemma_host(eager.manifest).generate(run, **given, max_new_tokens=4, **OPTIONS)
    recorder.save(tmp_path)
    words = ["--ids", rows_of(given["input_ids"], None), *media_file(tmp_path, given), *GEMMA_WORDS]
    done = native(tmp_path, *words, "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr


# --- one statement of what a host needs: both hosts follow its numbers, and neither passes over another flow ---


def changed(manifest: Any, path: str, value: Any) -> Any:
    """A copy with another value at host_data's `path`, such as media.0.token_id."""
    copy = json.loads(json.dumps(manifest))
    at: Any = copy["host_data"]
    *words, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    for word in words:
        at = at[word]
    at[last] = value
    return copy


def of_family(family: str) -> tuple[Any, Any, dict[str, Any]]:
    """An eager bundle with images, what makes its host of a manifest, and a prompt."""
    if family == "qwen3_vl":
        eager: Any = Eager(qwen_tree()[1], qwen_profile())
        return eager, qwen_host, batch((2, A, 1, C))
    return gemma_eager("vision"), gemma_host, gemma.given("all", seed=8)


@pytest.mark.parametrize(
    ("family", "path", "value", "shown"),
    [
        ("qwen3_vl", "variants.0.window", 2, "attention_mask"),
        ("gemma4", "variants.0.window", 2, "attention_mask_sliding"),
        ("gemma4", "placeholder_id", 3, "input_ids"),
        ("gemma4", "together.variants", [], "attention_mask_sliding"),
    ],
)
def test_a_number_of_host_data_changes_both(family: str, path: str, value: Any, shown: str, tmp_path: Path) -> None:
    eager, host, given = of_family(family)
    options = {**GREEDY, "max_new_tokens": 2}
    plain = Recorder(eager)
    host(eager.manifest).generate(plain, **given, **options)
    eager.manifest = changed(eager.manifest, path, value)
    found = expect_same(tmp_path, eager, host(eager.manifest), given, *WORDS, **options)
    assert found.calls == plain.calls
    inputs = [name for name in plain.tensors if name.endswith(f"|in|{shown}")]
    assert any(not torch.equal(plain.tensors[name], found.tensors[name]) for name in inputs)


@pytest.mark.parametrize(
    ("family", "path", "value", "python", "told"),
    [
        ("qwen3_vl", "media.0.token_id", 1, "more image grid", "more image item"),
        ("qwen3_vl", "positions.merge", 1, r"host_data.towers\[0\].merge", "merged by 1 makes"),
        ("qwen3_vl", "positions.rule", "tokens", r"host_data.positions.rule of the manifest is 'tokens'", "E_REPLAY"),
        ("qwen3_vl", "embedding.1.index", "place", r"host_data.embedding\[1\].index", "takes 'visual_index'"),
        ("qwen3_vl", "embedding.1.outputs.inputs_embeds", "x", "outputs.inputs_embeds of the manifest", "E_REPLAY"),
        ("qwen3_vl", "towers.0.outputs.0", "rows", r"host_data.towers\[0\].outputs\[0\]", "'rows'"),
        ("qwen3_vl", "version", 2, "host_data of the manifest has version 2", "is 2, this program knows"),
        ("gemma4", "media.2.token_id", 1, "audio", "audio placeholder tokens"),
        ("gemma4", "towers.1.frames_per_token", 5, "audio", "audio placeholder tokens"),
        ("gemma4", "towers.0.form", "grids", r"host_data.towers\[0\].form", "host_data.towers[0].merge"),
        ("gemma4", "embedding.1.segments.0.inputs.0", "x", r"segments\[0\].inputs\[0\]", "image_embeds"),
    ],
)
def test_another_host_data_is_refused_by_both(
    family: str, path: str, value: Any, python: str, told: str, tmp_path: Path
) -> None:
    eager, host, given = of_family(family)
    options, recorder = {**GREEDY, "max_new_tokens": 2}, Recorder(eager)
    host(eager.manifest).generate(recorder, **given, **options)
    recorder.save(tmp_path)
    file = tmp_path / "manifest.json"
    wrong = changed(json.loads(file.read_text()), path, value)
    file.write_text(json.dumps(wrong))
    given.pop("mm_token_type_ids", None)
    with pytest.raises(PyquantError, match=python):
        host(wrong).generate(eager, **given, **options)
    ids = rows_of(given["input_ids"], given.get("attention_mask"))
    done = native(tmp_path, "--ids", ids, *media_file(tmp_path, given), "--max-new-tokens", 2, *WORDS)
    assert done.returncode != 0
    assert told in done.stderr


# --- what is not as it should be ---


def test_a_recording_of_other_inputs_is_told(tmp_path: Path) -> None:
    eager = Eager(qwen_tree()[1], qwen_profile(image_grids=GRIDS))
    given, recorder = batch((2, A, 1)), Recorder(eager)
    eager.host().generate(recorder, **given, max_new_tokens=2, **GREEDY)
    name = next(name for name in recorder.tensors if name.endswith("|prefill_s24|in|cos"))
    recorder.tensors[name][0, 3, 1] = torch.nextafter(recorder.tensors[name][0, 3, 1], torch.tensor(2.0))
    recorder.save(tmp_path)
    ids = rows_of(given["input_ids"], None)
    words = ["--ids", ids, *media_file(tmp_path, given), "--max-new-tokens", 2, *WORDS]
    done = native(tmp_path, *words)
    assert done.returncode == 1
    assert "E_REPLAY" in done.stderr
    assert "graph 'prefill_s24', input 'cos': has " in done.stderr
    wrong = json.loads((tmp_path / "manifest.json").read_text())
    wrong["host_data"]["variants"][0]["window"] = 2
    (tmp_path / "manifest.json").write_text(json.dumps(wrong))
    assert "input 'attention_mask': has -" in native(tmp_path, *words).stderr
    done = native(tmp_path, "--ids", ids, "--max-new-tokens", 2, *WORDS)
    assert done.returncode == 2
    assert "no item is left for them" in done.stderr


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("23,24;25", "got 2 prompt(s), this bundle was exported with batch_size=1"),
        ("1,,2", "a comma has no token id on one side"),
        ("1,2,", "a comma has no token id on one side"),
    ],
)
def test_prompts_that_are_none_of_the_bundle(ids: str, message: str, tmp_path: Path) -> None:
    eager = EagerBundle(llama_tree()[1], llama.Profile(max_seq_len=20, prefill_lengths=(8,)))
    recorder = Recorder(eager)
    Host(eager.manifest).generate(recorder, torch.tensor([[23, 24, 25]]), max_new_tokens=2, **GREEDY)
    recorder.save(tmp_path)
    done = native(tmp_path, "--ids", ids, "--max-new-tokens", 2, *WORDS)
    assert done.returncode == 2
    assert message in done.stderr
    lines = tmp_path / "ids.txt"
    lines.write_text("23,\n24\n25\n")
    assert native(tmp_path, "--ids-file", lines, "--max-new-tokens", 2, *WORDS).returncode == 0
