"""Two ranks are one: the first step of relatives that no other test divides over processes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.recipe import load_recipe
from tests.objectives.image_text.steps import EXACT, assert_same_gradients, first_step, gradients, of_two_ranks
from tests.stores import TINY, make_store

UNPAIRED = [*EXACT[:-4], "--data.batch_paired", "0", "--data.batch_unpaired", "12"]
RECIPES = {
    "low-rank adaption": (["maskedclip"], ["--model.lora_rank", "2"]),
    "centred distillation": (["maskedclip"], ["--objective.mkd_centre", "true"]),
    "ehm_style": (["ehm_style"], UNPAIRED),
    "intelligent_masking_style": (["intelligent_masking_style"], UNPAIRED),
    "ge2ae_style": (["ge2ae_style"], UNPAIRED),
    "mmclip_style": (["mmclip_style"], []),
    "dae with its contrast": (["dae"], [*UNPAIRED, "--objective.terms", "{disrupted: {contrast_weight: 1.0}}"]),
    "dae": (["dae"], [*UNPAIRED, "--objective.terms", "{disrupted: {contrast_weight: 0.0}}"]),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two modalities, and some of which that is not known."""
    folder = make_store(tmp_path_factory.mktemp("ranks") / "store", rows=60)
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(shard)
        kinds = pa.array([("colour", "infrared", None)[place % 3] for place in range(len(table))])
        pq.write_table(table.append_column("modality", kinds), shard)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_gradients__of_two_ranks_are_those_of_one(name: str, store: Path, tmp_path: Path) -> None:
    configs, more = RECIPES[name]
    recipe = load_recipe([*configs, "tiny"], [*TINY, *EXACT, *more])
    whole = gradients(*first_step(store, recipe))
    assert len(whole) > 10
    # The gradient of an absolute error is a sign: a pixel that is met exactly may round to either.
    tolerance = 2e-4 if name.startswith("dae") else 1e-5
    assert_same_gradients(of_two_ranks(store, recipe, tmp_path), whole, tolerance)
