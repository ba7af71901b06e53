# SPDX-License-Identifier: Apache-2.0
"""The model families that pyquant knows, one room each: `from pyquant.models import gemma4`.

It owns nothing but the place. The registry imports the room of a transformers family when it meets a module of it.
"""
