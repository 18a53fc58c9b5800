"""What a terminal tells of results.json."""

from typing import Any

from maskedclip.evaluation.summary import summary_lines


def entry(value: float | None, reason: str = "", n: int = 9) -> dict[str, Any]:
    if value is None:
        return {"auroc": {"value": None, "low": None, "high": None, "n": n, "note": f"undefined (n={n}, {reason})"}}
    return {"auroc": {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}}


def part(**labels: dict[str, Any]) -> dict[str, Any]:
    values = [label["auroc"]["value"] for label in labels.values() if label["auroc"]["value"] is not None]
    mean = sum(values) / len(values) if values else None
    return {"macro": entry(mean, "no label is defined", 9 if values else 0), "per_label": labels}


def told(**sections: Any) -> list[str]:
    return summary_lines({"about": {"rows": {"test": 30}}, **sections})


def test_summary_lines__a_mean_over_some_labels_says_so() -> None:
    some = part(a=entry(0.6), b=entry(0.7), c=entry(None, "one class only"))
    assert told(linear={"encoder": some}) == [
        "linear probe, encoder: macro AUROC 0.650 (0.550-0.750, n 9, mean of 2 of 3 labels)"
    ]
    assert told(zero_shot=part(a=entry(0.6))) == ["zero-shot: macro AUROC 0.600 (0.500-0.700, n 9)"]


def test_summary_lines__means_over_other_labels_are_told_apart() -> None:
    few = entry(None, "20 training images of each class are needed, class 1 has 9")
    points = {"1": part(a=entry(0.5), b=entry(0.6)), "5": part(a=entry(0.5)), "20": part(a=entry(0.6), b=few)}
    assert told(fewshot={"encoder": points}) == [
        "linear probe, encoder: macro AUROC 0.550 (0.450-0.650, n 9, mean of 2 labels) with 1 of each class, "
        "0.600 (0.500-0.700, n 9, mean of 1 of 2 labels) with 20 of each class"
    ]
    points["20"] = part(a=entry(0.6), b=entry(0.8))
    assert "mean of" not in told(fewshot={"encoder": points})[0]


def test_summary_lines__nothing_defined_says_why_and_of_how_many_rows() -> None:
    one = entry(None, "the training split has one class only")
    for labels, reason in (
        ({"a": one, "b": one}, ": the training split has one class only"),
        (
            {"a": entry(None, "one class only"), "b": one, "c": one},
            "; of 2 of 3: the training split has one class only",
        ),
        ({"a": entry(None, "one class only")}, ": the test split has one class only"),
        ({"a": entry(None, "no row with a known value", 0)}, ": no test row has a value"),
    ):
        expected = f"k-NN, bridge: macro AUROC undefined (n=30, no label is defined{reason})"
        assert told(knn={"bridge": part(**labels)}) == [expected]


def test_summary_lines__label_columns_that_are_no_task_are_told() -> None:
    about = {"rows": {"test": 30}, "labels_left_out": {"age": "has fractions: a quantity, not classes"}}
    lines = summary_lines({"about": about, "linear": {"encoder": part(a=entry(0.6))}})
    assert lines[1:] == ["label.age: left out, it has fractions: a quantity, not classes"]
    skipped = {"skipped": "label.age has fractions: a quantity, not classes"}
    assert summary_lines({"about": about, "linear": skipped}) == [f"linear probe: left out, {skipped['skipped']}"]
