# SPDX-License-Identifier: Apache-2.0
"""README.md of a saved model: the front matter that the Hugging Face hub reads, and what was done, in figures.

It owns the words of the card, which has no date, so that the same model gives the same bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pyquant.block_site import BlockSite
from pyquant.wrap import QModule

README = "README.md"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TASKS = {"ForConditionalGeneration": "image-text-to-text", "ForCausalLM": "text-generation"}


def model_card(q: QModule, *, base: str, facts: Mapping[str, str], versions: Mapping[str, str], size: int) -> str:
    """The card of a converted tree. `base`: checkpoint folder or hub name of the float model, "" where it is not
    known; `facts`: further rows, such as the command; `size`: bytes of the weights file."""
    assert q.fp_type is not None
    kind = q.fp_type.__name__
    floats = sum(value.numel() for value in q.parameters()) * 4
    rows = {
        "base model": base or "not recorded",
        "class": kind,
        "recipe": q.policy.name,
        **_run(q),
        **facts,
        "weights": f"{size:,} bytes here; {floats:,} bytes as float32",
        "sites": _sites(q),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    title = f"{Path(base).name or kind}, quantized ({q.policy.name})"
    return f"""---
{yaml.safe_dump(_front_matter(q, base), sort_keys=False, allow_unicode=True)}---

# {title}

Quantized after training by pyquant. `quantized.safetensors` holds integers where a weight is quantized,
`quantization.json` the scale, zero point and number format of every site; transformers alone does not load it.

```python
import pyquant

q = pyquant.load_quantized("path of this folder")  # called as the {kind} that it was
```

| | |
| --- | --- |
{table}
"""


def _run(q: QModule) -> dict[str, str]:
    """The steps of the recipe, what they decided, and what they had to say."""
    rows: dict[str, str] = {}
    recipe = q.state.recipe
    if recipe is not None and recipe.steps:
        rows["steps"] = ", ".join(map(str, recipe.steps))
    if recipe is not None and recipe.evidence:
        rows["evidence"] = recipe.evidence
    if q.state.log:
        counts = Counter(decision.how for decision in q.state.log)
        rows["decided"] = f"{', '.join(f'{n} by {how}' for how, n in counts.items())} (quantization_log.csv)"
    return rows | ({"notes": "; ".join(q.state.notes)} if q.state.notes else {})


def _front_matter(q: QModule, base: str) -> dict[str, Any]:
    assert q.fp_type is not None
    front: dict[str, Any] = {}
    if _HUB_NAME.fullmatch(base) and not Path(base).exists():
        front |= {"base_model": base, "base_model_relation": "quantized"}
    front |= _licence(base)
    front["library_name"] = "pyquant"
    task = next((task for ending, task in _TASKS.items() if q.fp_type.__name__.endswith(ending)), None)
    if task is not None:
        front["pipeline_tag"] = task
    family = getattr(q.config, "model_type", None)
    return front | {"tags": ["pyquant", "quantized", "circle", *([str(family)] if family else [])]}


def _licence(base: str) -> dict[str, str]:
    """The licence that the base model's own card names: it is that of the quantized weights too."""
    try:
        text = Path(base, README).read_text(encoding="utf-8") if base and Path(base).is_dir() else ""
        data = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: str(data[key]) for key in keys if key in data} if isinstance(data, dict) else {}


def _sites(q: QModule) -> str:
    formats: Counter[str] = Counter()
    for site in q.all_sites():
        quantized = site.scale is not None or isinstance(site, BlockSite)
        formats[str(site.spec.dtype) if quantized and site.spec is not None else "float"] += 1
    return f"{sum(formats.values())}: " + ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
