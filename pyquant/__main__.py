# SPDX-License-Identifier: Apache-2.0
"""`python -m pyquant`: the command, for launchers that take a module (torchrun -m pyquant quantize ...)."""

from pyquant.cli.main import entry

if __name__ == "__main__":
    entry()
