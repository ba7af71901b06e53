# SPDX-License-Identifier: Apache-2.0
"""Every manifest that a test writes is what pyquant/exporter/manifest.schema.json says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pyquant.exporter import bundle
from pyquant.models import FAMILIES

SCHEMA = Path(bundle.__file__).with_name("manifest.schema.json")


@pytest.fixture(autouse=True, scope="session")
def valid_manifests() -> Iterator[None]:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    validator, write = Draft202012Validator(schema), bundle._write_manifest

    def checked(path: Path, manifest: dict[str, Any]) -> None:
        faults = [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(manifest)]
        assert faults == []
        assert manifest.get("family") not in FAMILIES or "host_data" in manifest
        write(path, manifest)

    bundle._write_manifest = checked
    yield
    bundle._write_manifest = write
