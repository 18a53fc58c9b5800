"""MMCLIP-style on phantoms or a store of yours: does the report help to paint, and the image to fill in entities?

    python benchmarks/family_mmclip.py --store STORE [--steps 300] [--seeds 2]

Trains the shipped recipe at `tiny` on 25 % of the texts, then measures on rows of the validation split, which the run
never saw: the pixel loss with each image's own report and with another image's, the cross-entropy of masked entities
with the image and with a blank one, the share of masked tokens in entities, and the response of hidden patches over
that of visible ones.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import Pools, make_pools
from maskedclip.data.store import Store, open_store
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.texts.entity_mlm import EntityMLM
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.checkpoint import read_newest
from maskedclip.training.describe import training_texts
from maskedclip.training.pretrain import pretrain


def trained(recipe: Recipe, folder: Path, run: Path) -> tuple[PretrainingObjective, Store, Pools]:
    """Train, and build the objective with the weights of the end."""
    pretrain(recipe, folder, run)
    store = open_store(folder)
    pools = make_pools(store, recipe)
    objective = build_objective(recipe, build_model(recipe, training_texts(store, pools, recipe))[0])
    restored, _ = read_newest(run / "checkpoints")
    assert restored is not None
    tensors = {name.removeprefix("objective/"): value for name, value in restored[0].items()}
    objective.load_state_dict({name: tensors[name] for name in objective.state_dict()})
    return objective.eval(), store, pools


@torch.no_grad()
def measure(objective: PretrainingObjective, store: Store, recipe: Recipe, batches: int) -> dict[str, float]:
    """Means over batches of the validation split."""
    rows = store.rows("val")
    rows = rows[store.has_text[rows]]
    held_out = Pools(rows, np.empty(0, np.int64), (0, 0))
    paired = recipe.replace(data={"batch_unpaired": 0, "pool": "paired"})
    steps = StepDataset(store, held_out, paired, objective.model.tokenizer)
    pixels, entities = objective.terms["text_guided_pixels"], objective.terms["entity_mlm"]
    assert isinstance(entities, EntityMLM)
    sums: dict[str, list[float]] = {}
    for step in range(batches):
        batch = Batch.from_host(steps[step])
        views = objective._views(batch, 1.0)
        response, hidden = views.text_response, views.mask.is_hidden()
        assert batch.text_index is not None
        share = entities(views)[1]["entity_share"]
        given, entities.options = (
            entities.options,
            replace(entities.options, fill_to=0.0),
        )  # entities alone from here on
        words = entities(views)[0]
        shuffled = objective._views(batch, 1.0)
        vars(shuffled).update(mask=views.mask, masked_tokens=views.masked_tokens)  # the same patches are painted
        own = pixels(views)[0]["text_guided_pixels"]
        own_index, batch.text_index = batch.text_index, batch.text_index.roll(1)
        other = pixels(shuffled)[0]["text_guided_pixels"]
        batch.text_index = own_index
        batch.image = torch.zeros_like(batch.image)
        blank = entities(objective._views(batch, 1.0))[0]["entity_mlm"]
        entities.options = given
        figures = {
            "pixels, own report": own,
            "pixels, another report": other,
            "entities, image": words["entity_mlm"],
            "entities, blank image": blank,
            "entity share of masked tokens": share,
            "response, hidden / visible": response[hidden].mean() / response[~hidden].mean(),
        }
        for name, value in figures.items():
            sums.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True, help="of phantoms, such as demo/store")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    for seed in range(given.seeds):
        recipe = load_recipe(
            ["mmclip_style", "tiny"],
            [
                *("--seed", str(seed), "--training.steps", str(given.steps), "--data.text_fraction", "0.25"),
                *("--data.workers", "0", "--training.validate_every", "0", "--training.tensorboard", "false"),
                *given.overrides,
            ],
        )
        with tempfile.TemporaryDirectory() as folder:
            objective, store, _ = trained(recipe, given.store, Path(folder) / "run")
            figures = measure(objective, store, recipe, given.batches)
        print(
            json.dumps({"seed": seed, "steps": given.steps} | {k: round(v, 4) for k, v in figures.items()}), flush=True
        )


if __name__ == "__main__":
    main()
