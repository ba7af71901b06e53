# SPDX-License-Identifier: Apache-2.0
"""What a release of transformers broke: `make contracts` lists it for the installed one, in seconds, without a model.

`python tests/contracts.py 5.25.0` asks a release in its own environment (matrix.py); `--record` writes what it found
into the `contract.json` beside the wrappers, once the tests pass on that release.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import Version
from torch import nn

from pyquant import models
from pyquant.wrap import hf_contract, hf_records, registry
from pyquant.wrap.hf_facts import CACHE_MODULE, Facts, cache_facts, facts

ROOT = Path(__file__).resolve().parents[1]
HOMES = ("pyquant.wrap.hf_activations", *(f"pyquant.models.{name}" for name in models.FAMILIES))
# not in every release: what they wrap -> where the wrappers are
OPTIONAL = {"transformers.integrations.gemma_quant": "pyquant.wrap.hf_gemma_quant"}


def classes() -> Iterator[type[nn.Module]]:
    """Every class of transformers that has a wrapper of pyquant, by name."""
    for home in (*HOMES, *(home for theirs, home in OPTIONAL.items() if importlib.util.find_spec(theirs))):
        importlib.import_module(home)
    yield from sorted(filter(hf_contract.has_contract, registry.classes()), key=registry.qualified)


def found() -> dict[str, dict[str, Facts]]:
    """File of records -> class -> what is true of it in the installed release."""
    files: dict[str, dict[str, Facts]] = {}
    for cls in classes():
        path = hf_records.home(cls).relative_to(ROOT).as_posix()
        files.setdefault(path, {})[cls.__name__] = facts(cls)
    files.setdefault(hf_records.SHARED.relative_to(ROOT).as_posix(), {})[CACHE_MODULE] = cache_facts()
    return files


def merged(by_release: dict[str, dict[str, Facts]]) -> dict[str, Any]:
    """Records of one file: for each class and aspect, the first release of each value. Releases in any order."""
    releases = sorted(by_release, key=Version)
    history: dict[str, dict[str, dict[str, str | None]]] = {}
    for release in releases:
        for name, aspects in by_release[release].items():
            for aspect, value in aspects.items():
                known = history.setdefault(name, {}).setdefault(aspect, {})
                if not known or list(known.values())[-1] != value:
                    known[release] = value
    return {"releases": releases, "classes": {name: history[name] for name in sorted(history)}}


def unfolded(records: dict[str, Any]) -> dict[str, dict[str, Facts]]:
    """The inverse of `merged`: release -> class -> aspect -> value."""
    out: dict[str, dict[str, Facts]] = {}
    for release in records["releases"]:
        for name, aspects in records["classes"].items():
            for aspect, known in aspects.items():
                at = [value for since, value in known.items() if Version(since) <= Version(release)]
                if at:
                    out.setdefault(release, {}).setdefault(name, {})[aspect] = at[-1]
    return out


def record(by_release: dict[str, dict[str, dict[str, Facts]]]) -> None:
    """Add the facts of releases (release -> file -> class -> facts) to the files of records."""
    for file in sorted({file for files in by_release.values() for file in files}):
        path = ROOT / file
        known = unfolded(json.loads(path.read_text())) if path.exists() else {}
        known |= {release: files[file] for release, files in by_release.items() if file in files}
        path.write_text(json.dumps(merged(known), indent=1) + "\n")
        print(f"{file}: {len(known)} releases")


def of_release(release: str, folder: Path) -> tuple[str, dict[str, dict[str, Facts]]]:
    """(version, the result of `found`) of a release in an environment of its own."""
    from matrix import environment

    command = [sys.executable, __file__, "--json"]
    run = subprocess.run(command, env=environment(release, folder), cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"transformers {release}: {run.stderr.strip().splitlines()[-1]}")
    version, files = json.loads(run.stdout.splitlines()[-1])
    return version, files


def mismatches() -> list[str]:
    """One line for each difference between the installed release and the records."""
    return [line for cls in classes() for line in hf_contract.mismatches(cls)] + hf_contract.cache_mismatches()


def main() -> int:
    """Print the mismatches; the exit code is 1 when there are some."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "releases", nargs="*", default=["newest"], help="as matrix.py takes them; default: the installed"
    )
    parser.add_argument("--record", action="store_true", help="write what was found into contract.json")
    parser.add_argument("--json", action="store_true", help="print what was found in this process, and nothing else")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="where environments are kept")
    options = parser.parse_args()
    import transformers

    if options.json:
        print(json.dumps([transformers.__version__, found()]))
        return 0
    if options.record:
        options.folder.mkdir(parents=True, exist_ok=True)
        record(dict(of_release(release, options.folder) for release in options.releases))
        return 0
    return max(_listed(release, options.folder) for release in options.releases)


def _listed(release: str, folder: Path) -> int:
    if release != "newest":
        from matrix import environment

        folder.mkdir(parents=True, exist_ok=True)
        return subprocess.run([sys.executable, __file__], env=environment(release, folder), cwd=ROOT).returncode
    import transformers

    try:
        lines = mismatches()
    except ImportError as error:
        lines = [str(error)]
    print(f"transformers {transformers.__version__}: {len(lines)} mismatches with releases {hf_records.supported()}")
    print("\n".join(f"  {line}" for line in lines), end="\n" if lines else "")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
