"""What a busy neighbour costs a training step, with threads that spin while they wait and threads that sleep.

python benchmarks/waiting.py      # about five minutes on two cores; prints a table for RESULTS.md
"""

import os
import statistics
import subprocess
import sys

STEP = """
import time, torch
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import build_objective
from maskedclip.recipe import load_recipe
recipe = load_recipe(["maskedclip", "tiny"])
model, tokenizer = build_model(recipe, ["normal fundus", "drusen", "glaucoma"])
objective = build_objective(recipe, model)
size, paired, unpaired = recipe.data.size, *recipe.batch_sizes
image = torch.randint(0, 256, (paired + unpaired, 3, size, size), dtype=torch.uint8)
ids, mask = tokenizer(["normal fundus"] * paired)
texts = {"text_ids": ids, "text_mask": mask, "text_key": torch.arange(paired)}
batch = Batch(image=image, keys=torch.arange(len(image)), num_paired=paired, **texts)
for step in range(6):
    began = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _, _ = objective(batch, 0.5)
    total.backward()
    if step:
        print(time.perf_counter() - began, flush=True)
"""


def seconds(policy: str) -> float:
    """Median seconds of a step in a process of its own."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy}
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True, env=environment)
    return statistics.median(float(line) for line in done.stdout.split())


def main() -> None:
    print("| neighbour | spinning (ACTIVE) | sleeping (PASSIVE) | ratio of medians |\n|---|---|---|---|")
    for busy in (False, True):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            pairs = [(seconds("ACTIVE"), seconds("PASSIVE")) for _ in range(3)]
        finally:
            if neighbour is not None:
                neighbour.kill()
        active, passive = (statistics.median(values) for values in zip(*pairs, strict=True))
        name = "one busy process" if busy else "none"
        print(f"| {name} | {active:.2f} s | {passive:.2f} s | {active / passive:.2f} |", flush=True)


if __name__ == "__main__":
    main()
