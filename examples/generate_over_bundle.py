# SPDX-License-Identifier: Apache-2.0
"""From a question about an image to an answer, over the .circle files of a bundle alone: no model is loaded.

    python -m examples.generate_over_bundle OUT                         a question about handwritten digits
    python -m examples.generate_over_bundle OUT FOLDER IMAGE "PROMPT"   by the processor of the checkpoint in FOLDER

OUT is what quantize_model.py or `pyquant quantize` wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path

from examples.digits import vlm_data
from pyquant import calibration
from pyquant.verify import Session


def main(out: str = "out/model", folder: str | None = None, image: str | None = None, prompt: str = "") -> None:
    with Session(out) as session:
        if folder is None or image is None:
            (question,) = vlm_data.questions("heldout", 1, seed=3)
            inputs = vlm_data.inputs([question])
            print("question:", vlm_data.words(question.prompt))
            print("expected:", vlm_data.words(question.answer))
        else:
            reader = calibration.load_reader(folder)
            inputs = reader.read(calibration.Line("the question", prompt, (Path(image),)))

        length = inputs["input_ids"].shape[1]
        room = session.manifest["max_seq_len"] - length
        tokens = session.generate(**inputs, max_new_tokens=min(room, 16))[0, length:]
        answer = vlm_data.words(tokens.tolist()) if folder is None else reader.tokenizer.decode(tokens)
        print("answer:", answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
