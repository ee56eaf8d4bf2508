"""Draws the picture in mini_vllm/README.md: eight prompts to SmolLM2 with too few blocks, so that requests are preempted.

python scripts/record_timeline.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))

from labkit.checkpoints.fetch import fetch_smollm2  # noqa: E402  # found only with the line above
from labkit.pictures.timeline import draw, read  # noqa: E402
from labkit.system.atomic_write import atomic_write  # noqa: E402
from mini_vllm import LLM, SamplingParams  # noqa: E402

SYSTEM = "You are a helpful assistant. Answer in one short sentence, and then stop talking at once. The question is: "
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many legs has a spider?",
    "Who wrote Hamlet?",
    "What is 2 + 2?",
    "Name a planet.",
    "Say hello in German.",
    "What do bees make?",
)


def main() -> None:
    """Serves the questions, records the steps and draws them."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "steps.jsonl")
        sizes = {"num_blocks": 9, "max_model_len": 72, "max_num_batched_tokens": 64, "max_num_seqs": 6}
        llm = LLM(fetch_smollm2(), dtype="float32", step_trace=trace, **sizes)
        params = [SamplingParams(temperature=0, max_tokens=10 + 2 * i, ignore_eos=True) for i in range(len(QUESTIONS))]
        llm.generate([SYSTEM + question for question in QUESTIONS], params)
        picture = ROOT / "mini_vllm" / "timeline.svg"
        atomic_write(picture, draw(read(trace), trace.name))
    print(f"{llm.llm_engine.stats}\nwritten: {picture}")


if __name__ == "__main__":
    main()
