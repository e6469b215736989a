"""A student as the transfer makes it, before any training, as a checkpoint folder: what parity is measured on where
distilling would take a GPU. It is the harder case: nothing has smoothed it (docs/export.md, "left out").

--skip sets the mixers' skip D, which the transfer leaves at zero and training does not: with it a head's output rarely
crosses zero, where its norm makes the last bits of fp32 decide a direction (the median position is five times surer).

Usage: python benchmarks/fresh_student.py smollm2 out/smollm2-hybrid --keep 4,9,14,19,24,29 --skip 3
       python benchmarks/fresh_student.py smollm2 out/smollm2-pure --skip 3
"""

from __future__ import annotations

import argparse

import torch

from thinkfast.data.problems import load_problems
from thinkfast.data.prompts import prompt_tokens
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.loading import load_model
from thinkfast.models.mixers import Mamba
from thinkfast.models.ragged import Ragged
from thinkfast.models.transfer import input_moments, plan_transfer, transfer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("out")
    parser.add_argument("--keep", default="", help="layers that stay attention; none gives a pure student")
    parser.add_argument("--d-state", type=int, default=None, help="default: the head size, so that no rank is cut")
    parser.add_argument("--problems", default="gsm8k_train", help="text that the transfer calibrates on")
    parser.add_argument("--skip", type=float, default=0.0, help="the mixers' skip D")
    given = parser.parse_args()
    teacher = load_model(given.teacher)
    problems = load_problems(given.problems, limit=16)
    prompts = [prompt_tokens(teacher.tokenizer, problem.question) for problem in problems]
    batch = (torch.tensor([t for p in prompts for t in p]), Ragged(torch.tensor([len(p) for p in prompts])))
    spec = teacher.spec.as_student(tuple(int(i) for i in given.keep.split(",") if i), given.d_state)
    student = transfer(teacher.model, plan_transfer(teacher.spec, spec), input_moments(teacher.model, [batch]))
    for block in student.blocks:
        if isinstance(block.mixer, Mamba):
            block.mixer.D.data.fill_(given.skip)
    print(save_checkpoint(student, teacher.tokenizer.path, given.out, torch.float32))


if __name__ == "__main__":
    main()
