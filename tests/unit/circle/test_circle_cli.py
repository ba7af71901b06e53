# SPDX-License-Identifier: Apache-2.0
"""The program pyquant-circle: every verb, its exit code, its one line per error; it needs neither Python nor torch."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyquant import __version__, circle
from pyquant._launch import program
from tests.golden import make

GOLDEN = Path(make.__file__).parent
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Run:
    def run(*words: object, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess[str]:
        command = [program(), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env, **options)

    return run


@pytest.fixture
def plan(tmp_path: Path) -> tuple[Path, Path]:
    """uint8_linear as the files that `write` takes, constants by name."""
    builder = make.uint8_linear()
    names = {}
    for tensor in builder.plan["tensors"]:
        if "constant" in tensor:
            names[tensor["name"]] = builder.constants[tensor["constant"]]
            tensor["constant"] = tensor["name"]
    (tmp_path / "plan.json").write_text(builder.text())
    save_file(names, tmp_path / "w.safetensors")
    return tmp_path / "plan.json", tmp_path / "w.safetensors"


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"pyquant-circle {__version__}\n"
    for words in (["--help"], []):
        done = run(*words)
        assert done.returncode == 0
        for verb in ("write", "inspect", "check", "diff", "plan", "run", "generate", "faults"):
            assert f"pyquant-circle {verb}" in done.stdout
    for verb in ("write", "inspect", "check", "diff", "plan", "run", "generate", "faults"):
        done = run(verb, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: pyquant-circle {verb}")


def test_the_program_stands_alone(run: Run) -> None:
    assert run("check", GOLDEN / "float_mlp.circle", env={}).returncode == 0
    if shutil.which("ldd"):
        libraries = subprocess.run(["ldd", program()], capture_output=True, text=True, check=True).stdout
        assert not re.search("torch|python", libraries.replace(str(GOLDEN.parent.parent), ""))


def test_write_gives_the_golden_file(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "x.circle")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/x.circle: {(GOLDEN / 'uint8_linear.circle').stat().st_size} bytes\n"
    assert (tmp_path / "x.circle").read_bytes() == (GOLDEN / "uint8_linear.circle").read_bytes()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.circle")), ids=lambda path: path.stem)
def test_plan_and_write_give_the_same_bytes(path: Path, run: Run, tmp_path: Path) -> None:
    done = run("plan", path, "-o", tmp_path / "plan.json", "--weights", tmp_path / "w.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    layout = "external" if ".external" in path.name else "auto"
    done = run(
        "write",
        tmp_path / "plan.json",
        "--weights",
        tmp_path / "w.safetensors",
        "-o",
        tmp_path / "x.circle",
        "--layout",
        layout,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.circle").read_bytes() == path.read_bytes()
    assert load_file(tmp_path / "w.safetensors")
    json.loads((tmp_path / "plan.json").read_text())


def test_inspect(run: Run) -> None:
    path = GOLDEN / "uint8_linear.circle"
    done = run("inspect", path)
    assert done.returncode == 0
    for part in (
        "graph 'uint8_linear': 7 tensors (0 float), 3 operators",
        "1 x FULLY_CONNECTED",
        "uint8: 1 tensors, 12 bytes",
    ):
        assert part in done.stdout
    report = json.loads(run("inspect", "--json", path).stdout)
    assert report["layout"] == "inline"
    assert report["operator_counts"] == {"FULLY_CONNECTED": 1, "SOFTMAX": 1, "TRANSPOSE": 1}
    assert report["tensors"][1]["constant_bytes"] == 12
    assert "external constants" in run("inspect", GOLDEN / "uint8_linear.external.circle").stdout


def test_check(run: Run) -> None:
    path = GOLDEN / "uint8_linear.circle"
    done = run("check", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: 0 faults for target circle\n")
    done = run("check", "--target", "onert", path)
    assert done.returncode == 1
    assert (
        "E_ONERT_WRONG: operators[0] FULLY_CONNECTED: input 1 'w' (uint8 [3, 4]): quantized per channel" in done.stdout
    )
    assert done.stdout.endswith("faults for target onert\n")
    assert run("check", "--target=luci", path).returncode == 0


def test_diff(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    path = GOLDEN / "uint8_linear.circle"
    assert run("diff", path, GOLDEN / "uint8_linear.external.circle").returncode == 0
    text = plan[0].read_text().replace('"scale": [0.25]', '"scale": [0.5]')
    plan[0].write_text(text)
    run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "x.circle")
    done = run("diff", path, tmp_path / "x.circle")
    assert done.returncode == 1
    assert "tensor 'y' qparams: scale 0.25, zero_point 128 -> scale 0.5, zero_point 128\n" in done.stdout


def test_faults_lists_every_code(run: Run) -> None:
    assert "E_SCALE_NOT_FINITE       a scale is NaN or infinite\n" in run("faults").stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["frobnicate"],
            "verb 'frobnicate' is unknown, expected one of write, inspect, check, diff, plan, run, generate, faults",
        ),
        (["check"], "saw 0 file names, expected 1; usage: pyquant-circle check"),
        (["check", "--fast", "x"], "unknown option '--fast'"),
        (["check", "--target"], "option '--target' wants a target"),
        (["check", "--target", "tflite", "x"], "target 'tflite' is unknown, expected one of circle, luci, onert"),
        (["inspect", "--json=1", "x"], "option '--json' takes no value"),
        (
            ["inspect", "/nowhere/x.circle"],
            "E_OPEN: /nowhere/x.circle: cannot open for reading (No such file or directory)",
        ),
        (["inspect", "/"], "E_OPEN: /: not a regular file; a file is expected"),
        (["write", "plan.json"], "option -o is missing"),
        (["plan", "x.circle", "-o", "y"], "options -o and --weights are needed"),
        (["write", "p", "-o", "a", "-o", "b"], "option '-o' occurs twice"),
        (
            ["write", "p", "-o", "a", "--layout", "round"],
            "layout 'round' is unknown, expected one of auto, inline, external",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(words: list[str], expected: str, run: Run) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pyquant-circle: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def refused(done: subprocess.CompletedProcess[str], code: int, expected: str) -> None:
    assert done.returncode == code, done.stderr
    assert expected in done.stderr


def test_a_weights_file_without_a_named_tensor(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    save_file({"w": torch.zeros(12, dtype=torch.uint8)}, plan[1])
    done = run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "x.circle")
    refused(
        done,
        2,
        f"E_WEIGHTS_MISSING: tensors[2] 'b': the plan names constant 'b', which {plan[1]} (1 tensors) does not have",
    )
    assert not (tmp_path / "x.circle").exists()


def test_weights_that_are_not_in_the_plan_are_noted(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    save_file({**load_file(plan[1]), "extra": torch.zeros(1)}, plan[1])
    done = run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "x.circle")
    refused(done, 0, "note: 1 tensors of")
    assert "such as 'extra'" in done.stderr


def test_weights_of_another_dtype(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    save_file({**load_file(plan[1]), "b": torch.zeros(3)}, plan[1])
    done = run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "x.circle")
    refused(done, 2, f"E_CONSTANT_DTYPE: tensors[2] 'b': constant 'b' is F32 in {plan[1]}, expected I32 for int32")


def test_a_truncated_weights_file(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    plan[1].write_bytes(plan[1].read_bytes()[:-4])
    done = run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "x.circle")
    refused(done, 2, "E_WEIGHTS_RANGE")
    assert "is the file truncated?" in done.stderr


def test_weights_that_are_no_weights(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("write", plan[0], "--weights", plan[0], "-o", tmp_path / "x.circle")
    refused(done, 2, "E_WEIGHTS_FORMAT")
    done = run("write", plan[0], "-o", tmp_path / "x.circle")
    refused(done, 2, "has 3 constants; pass --weights FILE.safetensors")


def test_a_constant_of_the_wrong_size(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    save_file({**load_file(plan[1]), "w": torch.zeros(11, dtype=torch.uint8)}, plan[1])
    done = run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "x.circle")
    refused(done, 1, "E_BUFFER_SIZE: tensors[1] 'w': its buffer has 11 bytes, uint8 [3, 4] needs 12")


def test_bad_json(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    plan[0].write_text(plan[0].read_text().replace('"operators": [', '"operators": ['[:-1], 1))
    done = run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "x.circle")
    refused(done, 2, f"E_JSON_SYNTAX: {plan[0]}, line 1, column ")


def test_a_folder_that_does_not_exist(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("write", plan[0], "--weights", plan[1], "-o", tmp_path / "missing/x.circle")
    refused(done, 2, f"folder '{tmp_path}/missing' does not exist; create it first")


def test_a_full_disk(run: Run, plan: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "x.circle"
    path.write_bytes(b"old")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))

    done = run("write", plan[0], "--weights", plan[1], "-o", path, preexec_fn=limit)
    refused(done, 2, f"E_WRITE: {path}: writing failed after ")
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "w.safetensors", "x.circle"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_standard_output_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        command = [program(), "inspect", str(GOLDEN / "uint8_linear.circle")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    refused(done, 2, "cannot write to the standard output (No space left on device)")


def test_a_corrupt_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.circle"
    path.write_bytes((GOLDEN / "uint8_linear.circle").read_bytes()[:500])
    for words in (
        ["check", path],
        ["inspect", path],
        ["diff", path, path],
        ["plan", path, "-o", "p", "--weights", "w"],
    ):
        refused(run(*words), 2, f"E_FLATBUFFER: {path}: flatbuffers' verifier rejects its 500 bytes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of --ids, --ids-file and --chat is needed; usage: pyquant-circle generate BUNDLE"),
        (["--ids", "1", "--grid", "1x2x2"], "option '--grid' says the sizes of what --pixels has, which is missing"),
        (["--ids", "1"], "E_OPEN: "),
        (["--ids", "1", "--chat"], "exactly one of --ids, --ids-file and --chat is needed"),
        (["--ids", "1", "--seed", "x"], "--seed"),
    ],
)
def test_generate_says_what_it_needs(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    """What it does with a bundle is tests/models/test_native_host.py."""
    done = run("generate", tmp_path / "none", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_trace_replaces_no_file_of_its_call(run: Run, tmp_path: Path) -> None:
    model, folder = tmp_path / "m.circle", tmp_path / "traces"
    model.write_bytes((GOLDEN / "float_mlp.circle").read_bytes())
    port = circle.Runner(model).inputs[0]
    given = tmp_path / "x.safetensors"
    save_file({port.name: torch.zeros(port.shape)}, given)
    assert run("run", model, "--inputs", given, "--trace", folder).returncode == 0
    first = sorted(folder.iterdir())[0]
    traced = first.read_bytes()
    refused(run("run", model, "--inputs", first, "--trace", folder), 2, f"the file of --inputs is in '{folder}'")
    refused(run("run", model, "--inputs", given, "--trace", folder, "-o", first), 2, "the file of -o is in")
    refused(run("run", model, "--inputs", given, "--trace", given), 2, f"'{given}' is no folder")
    assert first.read_bytes() == traced
