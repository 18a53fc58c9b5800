"""A binary tree over the patches of each image, grown from what is similar, and its partition at any number of nodes.

B images, N patches, which are the leaves.
"""

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from torch import Tensor

_JITTER = 1e-6
"""Of distances in [0, 1]: far below what attention differs by, above what its sums round to."""


def distances(attention: Tensor, noise: Tensor) -> Tensor:
    """1 - S / max(S) between patches, S = (A + A') / 2, with a little noise so that no ties are left.

    Ties would be joined in the order of the patches, row by row.  The noise of a pair is the fractional part of the
    sum of two uniform numbers, which is uniform, and independent between any two pairs.

    Args:
        attention: not negative, (B, N, N); what is not finite counts as 0.
        noise: uniform in [0, 1), (B, N).

    Returns: of each pair, row by row of the upper triangle, float64 (B, N (N - 1) / 2).
    """
    patches = attention.shape[1]
    attention = torch.nan_to_num(attention.float(), nan=0.0, posinf=0.0, neginf=0.0)
    row, column = torch.triu_indices(patches, patches, 1, device=attention.device)
    flat = attention.flatten(1)
    similar = (flat.index_select(1, row * patches + column) + flat.index_select(1, column * patches + row)) / 2
    most = torch.cat([similar, attention.diagonal(dim1=1, dim2=2)], dim=1).amax(dim=1, keepdim=True)
    jitter = torch.frac(noise.index_select(1, row) + noise.index_select(1, column))
    return 1 - (similar / most.clamp(min=1e-30)).double() + _JITTER * jitter.double()


def grow(distance: Tensor) -> Tensor:
    """Merges of average linkage, the most similar first: merge i joins two nodes to node N + i, int64 (B, N - 1, 2).

    Args:
        distance: of each pair, (B, N (N - 1) / 2); grown on the processor, whatever the device (SciPy's chain of
            nearest neighbours, O(N^2) an image).
    """
    if distance.shape[1] == 0:
        return torch.zeros(len(distance), 0, 2, dtype=torch.int64, device=distance.device)
    merges = np.stack([linkage(image, "average")[:, :2] for image in distance.cpu().numpy()])
    return torch.from_numpy(merges.astype(np.int64)).to(distance.device)


def cut(merges: Tensor, count: int) -> Tensor:
    """The node that each patch lies in when the last `count` - 1 merges are undone: equal numbers, int64 (B, N).

    By the order of merges, not by their height: where heights are tied, a cut by height can leave one node.

    Args:
        merges: of `grow`, (B, N - 1, 2).
        count: nodes, in 1 .. N.
    """
    images, patches = merges.shape[0], merges.shape[1] + 1
    done = patches - count
    above = torch.arange(2 * patches - 1, device=merges.device).repeat(images, 1)
    made = torch.arange(patches, patches + done, device=merges.device).expand(images, -1)
    for side in (0, 1):
        above.scatter_(1, merges[:, :done, side], made)
    for _ in range(done.bit_length()):  # each round doubles how far a node looks up
        above = above.gather(1, above)
    return above[:, :patches]


def spokesmen(nodes: Tensor, noise: Tensor) -> Tensor:
    """One patch of each node, the one with the highest noise, for each patch of it: int64 (B, N).

    It moves along with the patches, so what is drawn for it does not depend on how nodes are numbered.

    Args:
        nodes: of `cut`, (B, N).
        noise: (B, N).
    """
    order = noise.argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    highest = torch.zeros(len(nodes), 2 * nodes.shape[1], dtype=torch.int64, device=nodes.device)
    highest.scatter_reduce_(1, nodes, rank, "amax")
    return order.gather(1, highest.gather(1, nodes))
