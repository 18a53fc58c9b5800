"""Settings of evaluations that stand side by side: where they differ, a difference may be theirs, not the models'."""

import json
from collections.abc import Mapping, Sequence

from maskedclip.html import shorten


def unlike_settings(results: Mapping[str, Sequence[dict]]) -> list[str]:
    """Settings that differ between evaluations that state them, which were made by one protocol's name."""
    told: dict[str, dict[str, list[str]]] = {}
    for name, parts in results.items():
        for part in parts:
            for setting, value in part["about"].get("settings", {}).items():
                own = told.setdefault(setting, {}).setdefault("default" if value is None else json.dumps(value), [])
                own += [] if name in own else [name]
    return [
        f"{setting}: " + "; ".join(f"{', '.join(names)} {shorten(value, 60)}" for value, names in values.items())
        for setting, values in told.items()
        if len(values) > 1
    ]
