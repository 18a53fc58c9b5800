"""Block-wise masks: exact, of one piece or few, a function of the key, in two and three dimensions."""

from typing import Any

import pytest
import torch
from scipy import ndimage

from maskedclip.errors import UserError
from maskedclip.objectives.masking import MaskContext, RandomMasker, mask_from_scores
from maskedclip.objectives.masking.block import BlockMasker, Options
from maskedclip.parts import read_options
from tests.objectives.masking.photographs import boundary, keys_of


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (3, 7), (1, 5), (4, 6, 6)])
@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.75, 0.97])
def test_block__ratio_is_exact(grid: tuple[int, ...], ratio: float) -> None:
    patches = int(torch.tensor(grid).prod())
    scores = BlockMasker(grid, Options()).score(MaskContext(keys_of(50), patches, 0.3))
    assert scores.shape == (50, patches)
    hidden = mask_from_scores(scores, ratio).is_hidden().sum(dim=1)
    assert (hidden == patches - max(1, round((1 - ratio) * patches))).all()


def test_block__hides_in_few_pieces_with_a_short_boundary() -> None:
    context = MaskContext(keys_of(100), 196, 0.0)
    blocks = mask_from_scores(BlockMasker((14, 14), Options()).score(context), 0.4)
    plain = mask_from_scores(RandomMasker().score(context), 0.4)
    assert boundary(blocks, 14).mean() < 0.4 * boundary(plain, 14).mean()
    pieces = [
        [int(ndimage.label(row.unflatten(0, (14, 14)).numpy())[1]) for row in mask.is_hidden()]  # type: ignore[index]
        for mask in (blocks, plain)
    ]
    assert sum(pieces[0]) / 100 < 3 < 10 < sum(pieces[1]) / 100


def test_block__one_rectangle_of_the_drawn_size_and_shape() -> None:
    options = Options(smallest=0.25, largest=0.25, flattest=1.0, tallest=1.0)
    mask = mask_from_scores(BlockMasker((14, 14), options).score(MaskContext(keys_of(60), 196, 0.0)), 49 / 196)
    corners = set()
    for row in mask.is_hidden():
        places = row.unflatten(0, (14, 14)).nonzero()
        low, high = places.amin(dim=0), places.amax(dim=0)
        assert (high - low + 1).tolist() == [7, 7]  # 49 patches, so nothing of the square is left out
        corners.add(tuple(low.tolist()))
    assert len(corners) > 25


def test_block__height_to_width_stays_in_its_range() -> None:
    options = Options(smallest=0.1, largest=0.1, flattest=2.0, tallest=2.0)
    mask = mask_from_scores(BlockMasker((20, 20), options).score(MaskContext(keys_of(40), 400, 0.0)), 36 / 400)
    for row in mask.is_hidden():  # 40 patches in whole sides are 9 x 4
        places = row.unflatten(0, (20, 20)).nonzero()
        height, width = (places.amax(dim=0) - places.amin(dim=0) + 1).tolist()
        assert (height, width) == (9, 4)


def test_block__depends_on_the_key_alone() -> None:
    masker, keys = BlockMasker((8, 8), Options()), keys_of(6)
    whole = masker.score(MaskContext(keys, 64, 0.2))
    assert torch.equal(masker.score(MaskContext(keys.flip(0), 64, 0.9)), whole.flip(0))
    assert torch.equal(masker.score(MaskContext(keys[2:4], 64, 0.2)), whole[2:4])
    assert len({tuple(row.tolist()) for row in whole}) == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"smallest": 0.5, "largest": 0.2}, "smallest: 0.5 and largest 0.2"),
        ({"smallest": 0.0}, "smallest: 0.0"),
        ({"flattest": 0.0}, "flattest: 0.0"),
        ({"smalest": 0.1}, r"smalest: no such option; did you mean smallest\?"),
    ],
)
def test_block__refuses_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_options("masking", "block", values)
