"""Photographs as a PyTorch data set: `DataLoader` workers prepare them, and no worker holds the model's weights."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from maskedclip.data.pixels import UndecodableImage
from maskedclip.deployment.external_open_clip import OpenClipModel
from maskedclip.deployment.inputs import Inputs, open_inputs
from maskedclip.deployment.inputs_files import of_paths
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError


class Photographs(Dataset[Tensor]):
    """Photographs as a model reads them, uint8 (3, S, S) each.

    Attributes: `inputs`, whose `ids` and `table` tell what each one is; `preprocessing`.
    """

    def __init__(self, inputs: Inputs, model: Model | OpenClipModel) -> None:
        self.inputs, self.preprocessing = inputs, model.preprocessing

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> Tensor:
        """The photograph of a row.

        Raises:
            IndexError: there is no such row.
            UserError: it cannot be read as an image.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"{row}: there are {len(self)} photographs")
        row %= len(self)
        try:
            return self.inputs.prepare(row, self.preprocessing)
        except UndecodableImage as error:
            raise UserError(f"{self.inputs.ids[row]}: {error}") from None


def photographs(paths: Path | str | Iterable[Path | str], model: Model | OpenClipModel) -> Photographs:
    """Photographs for `torch.utils.data.DataLoader`, prepared exactly as the model's features need them.

    Args:
        paths: whatever `maskedclip embed --data` takes (a store, folder, manifest, list, archive, image), or the paths
            themselves, in the order that is wanted.
        model: only its preprocessing is kept, so that workers start quickly and share no weights.

    Raises:
        UserError: there is nothing of this name, or no path at all.
    """
    return Photographs(open_inputs(paths) if isinstance(paths, str | Path) else of_paths(paths), model)
