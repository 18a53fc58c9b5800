"""Groups of rows that are linked, directly or through others."""

from __future__ import annotations


class Union:
    """Disjoint sets of the numbers below `count` (union by the lower root, path halving)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, row: int) -> int:
        """The lowest row of a row's group."""
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(self, one: int, two: int) -> None:
        """Make one group of two."""
        one, two = self.find(one), self.find(two)
        self._parent[max(one, two)] = min(one, two)

    def groups(self) -> list[list[int]]:
        """Groups of two rows or more, each ascending, in the order of their lowest rows."""
        found: dict[int, list[int]] = {}
        for row in range(len(self._parent)):
            found.setdefault(self.find(row), []).append(row)
        return [group for group in found.values() if len(group) > 1]
