# SPDX-License-Identifier: Apache-2.0
"""How good a model is, beside others on the same samples: perplexity, answers, lm-eval's tasks, speed.

It owns measuring and comparing. Reading checkpoints and files for the command line is cli/evaluate.py.
"""

from __future__ import annotations

from pyquant.evaluation.answers import exact_match, normalized, vqa_accuracy
from pyquant.evaluation.harness import LmEval
from pyquant.evaluation.likelihood import Likelihood
from pyquant.evaluation.overlap import overlap
from pyquant.evaluation.questions import Question, Questions, read_questions
from pyquant.evaluation.result import Evaluation, Overlap, Pair, Scores, Settings, TaskResult
from pyquant.evaluation.run import Task, evaluate
from pyquant.evaluation.scores import agreement, kl_divergence, token_losses
from pyquant.evaluation.series import Difference, Series, paired_difference
from pyquant.evaluation.subjects import FilesSubject, Forced, ModelSubject, Subject
from pyquant.evaluation.table import show
from pyquant.evaluation.text import Perplexity, read_text
from pyquant.evaluation.throughput import Throughput

__all__ = [
    "Difference",
    "Evaluation",
    "FilesSubject",
    "Forced",
    "Likelihood",
    "LmEval",
    "ModelSubject",
    "Overlap",
    "Pair",
    "Perplexity",
    "Question",
    "Questions",
    "Scores",
    "Series",
    "Settings",
    "Subject",
    "Task",
    "TaskResult",
    "Throughput",
    "agreement",
    "evaluate",
    "exact_match",
    "kl_divergence",
    "normalized",
    "overlap",
    "paired_difference",
    "read_questions",
    "read_text",
    "show",
    "token_losses",
    "vqa_accuracy",
]
