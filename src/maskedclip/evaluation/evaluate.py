"""All protocols on one model and one store: features once, then what was asked for, then two files.

n rows of the store in use, m of them in the test split.  The model comes in behind a Protocol, so that a run, a bare
encoder and a test's stand-in are evaluated by the same lines.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import maskedclip
from maskedclip.console import say
from maskedclip.data.masks import mask_names
from maskedclip.data.prompts import NORMAL, Overrides
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.evaluation.case import (
    PREDICTION_SCHEMA,
    Answered,
    AnyStore,
    Case,
    EvaluationModel,
    EvaluationStore,
    prediction_tables,
)
from maskedclip.evaluation.claimed_folder import claimed_folder, unwritable
from maskedclip.evaluation.dense import DenseResult, dense_probe
from maskedclip.evaluation.dense_sheet import dense_sheet
from maskedclip.evaluation.dense_table import DENSE_TABLE
from maskedclip.evaluation.development import DevelopmentStore
from maskedclip.evaluation.draws_table import DRAWS_TABLE, DrawnKey, DrawnMeans, draws_table
from maskedclip.evaluation.evaluated_rows import TEST_TABLE, labels_fingerprint, rows_table
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.evaluation.leakage import same_files
from maskedclip.evaluation.sections import LEARNING, SECTIONS, no_labels, repeated_section, retrieval_section, scored
from maskedclip.evaluation.statistics import Distribution, check_seed, cluster_codes, cluster_weights
from maskedclip.evaluation.subgroups import subgroup_columns, subgroup_scores
from maskedclip.evaluation.tasks import Task, read_tasks, task_prompts
from maskedclip.models.resizing import check_size
from maskedclip.whole_files import write_whole

__all__ = ["DEFAULT", "FROZEN", "PREDICTION_SCHEMA", "PROTOCOLS", "EvaluationModel", "EvaluationStore", "evaluate"]

FROZEN = ("linear", "knn", "fewshot", "label_efficiency", "zero_shot", "retrieval")
REPEATED = ("fewshot", "label_efficiency")
TRAINED = ("finetune", "lora")
PROTOCOLS = (*FROZEN, "dense", *TRAINED)
DEFAULT = ("linear", "knn", "zero_shot", "retrieval")


def evaluate(
    model: EvaluationModel,
    store: AnyStore,
    out: Path,
    *,
    protocols: Sequence[str] = DEFAULT,
    replicates: int = 1000,
    seed: int = 0,
    prompts: Overrides | None = None,
    subgroups: Sequence[str] = (),
    finetune: FineTuneSettings | None = None,
    dense_size: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict:
    """Evaluate `model` on the test split of `store`; write and return the results.

    `out/results.json`: by protocol, and for most by feature, {"macro", "per_label"} of {"value", "low", "high", "n"}
    (and "note"), the settings that validation chose, and "about" (fingerprints, rows, labels, replicates, seed,
    settings); a protocol that can't be had is {"skipped": why}.  `out/predictions.parquet`: a row per test row, label
    (and class), protocol and feature, for paired comparison; `out/retrieval.parquet`: the ranks; `out/draws.parquet`:
    the replicates of k-shot and label efficiency; `out/dense.parquet`: the figures of each image of the dense probe,
    and `out/dense.png` some of its maps; `out/test.parquet`: all test rows.  Nothing in them depends on time or
    machine, but for the seconds that fine-tuning took.

    Args:
        model: to be evaluated; "finetune" and "lora" need one of `maskedclip.load` or `open_model`.
        store: with splits and labels.
        out: a new folder.
        protocols: some of `PROTOCOLS`.
        replicates: of the bootstrap.
        seed: of the bootstrap, the draws and fine-tuning.
        prompts: for zero-shot.
        subgroups: columns of the store's table; linear probe and zero-shot are also scored by their groups.
        finetune: settings; its `method` is set by the protocol.
        dense_size: pixels that the encoder reads in the dense probe; None: as many as the stored pictures have.
        extra: further entries of "about".

    Raises UserError: no test split, a store that is given twice, a patient in test and in another split, an unknown
    protocol or column, a column of more than 50 groups, a negative seed, prompts for unknown labels, features that are
    not finite, an `out` that isn't empty or can't be written.
    """
    _check_request(store, protocols, replicates, seed)
    with claimed_folder(out):
        check_patients(store)
        files = same_files(store)
        if files and files["n"]:
            say(
                f"warning: {files['n']:,} test images are training or validation images too (the same file, such as "
                f"{files['first'][0]}); `maskedclip audit` lists them, and figures on them are too good"
            )
        test = np.flatnonzero(store.splits == "test")
        _check_sizes(model, protocols, finetune, dense_size)
        columns = subgroup_columns(store.table, subgroups, test) if subgroups else {}  # type: ignore[union-attr]
        tasks, refused = read_tasks(store.labels)
        _check_prompts(prompts, tasks)
        prompts = task_prompts(tasks, prompts)
        rows = _rows(store, tasks, protocols)
        patients = store.patients[store.splits == "test"]
        frozen = bool(set(protocols) & set(FROZEN))
        case = Case(
            model=model,
            store=store,
            rows=rows,
            features=_finite(model.features(store, rows), len(rows)) if frozen else {},
            tasks={name: task.on(rows) for name, task in tasks.items()},
            refused=refused,
            weights=cluster_weights(patients, replicates=replicates, seed=seed),
            seed=seed,
            prompts=prompts,
        )
        results: dict[str, Any] = {}
        answered: list[Answered] = []
        ranks, dense = None, None
        drawn: dict[DrawnKey, Distribution] = {}
        for protocol in PROTOCOLS:
            if protocol not in protocols:
                continue
            if protocol == "retrieval":
                results[protocol], ranks = retrieval_section(case)
                continue
            if protocol == "dense":
                dense = _dense(case, dense_size)
                results[protocol] = dense if isinstance(dense, dict) else dense.section
                continue
            if protocol in REPEATED:
                results[protocol], means = repeated_section(case, protocol)
                drawn |= means
                continue
            if protocol in FROZEN:
                parts = SECTIONS[protocol](case)
            else:
                try:
                    parts = _fine_tuned(case, protocol, finetune)
                except UserError as error:
                    if not results:
                        raise
                    # What the other protocols found is not lost with a training that diverged.
                    say(f"{protocol}: left out: {error}")
                    parts = {"skipped": str(error)}, []
            results[protocol] = parts[0]
            answered += parts[1]
        if columns:
            results["subgroups"] = _subgroups(case, columns, answered)
        given = {"prompts": prompts, "finetune": finetune and vars(finetune), "dense_size": dense_size}
        about = _about(case, protocols) | {"settings": _settings(given, protocols), "same_files": files}
        results["about"] = about | dict(extra or {})
        tables = [table for part in answered for table in prediction_tables(case, part)]
        kept = DrawnMeans(
            means=drawn, bootstrap=(replicates, seed), rows=len(patients), patients=results["about"]["test_patients"]
        )
        draws = draws_table(kept) if drawn else None
        _write(out, store, results, tables, ranks, draws, None if isinstance(dense, dict) else dense)
        return results


def check_patients(store: AnyStore) -> None:
    """Refuse a store in which a patient is in the test split and in another one (P24).

    Raises UserError: with how many they are, the first of them, and the mend.
    """
    splits, patients = store.splits, store.patients
    known = patients != ""
    test, rest = (
        set(patients[known & side].tolist()) for side in (splits == "test", np.isin(splits, ("train", "val")))
    )
    both = sorted(test & rest)
    if both:
        raise UserError(
            f"store: {len(both)} patients are in the test split and in another one ({', '.join(map(str, both[:3]))}"
            f"{', ...' if len(both) > 3 else ''}); give all images of a patient one split, and curate again (people of "
            "several stores are told apart by their names alone: give them different ones)"
        )


def _check_stores(store: AnyStore) -> None:
    """Refuse a store that is given twice: all its patients would count double, and find themselves in k-NN."""
    whole = store.store if isinstance(store, DevelopmentStore) else store
    if not isinstance(whole, Store):
        return
    places: dict[Path, Path] = {}
    images: dict[str, Path] = {}
    for folder, fingerprint in zip(whole.folders, whole.fingerprints, strict=True):
        place = folder.resolve()
        if place in places:
            raise UserError(f"{folder}: stands twice (as {places[place]}); give each store once")
        if fingerprint in images:
            raise UserError(f"{folder}: has the same images as {images[fingerprint]}; give one of the two")
        places[place] = images[fingerprint] = folder


def _check_request(store: AnyStore, protocols: Sequence[str], replicates: int, seed: int) -> None:
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or not protocols:
        raise UserError(f"protocols: {', '.join(unknown) or 'none given'}; choose from {', '.join(PROTOCOLS)}")
    if replicates < 2:
        raise UserError(f"replicates: {replicates} give no interval; use 1000")
    check_seed(seed)
    _check_stores(store)
    if not (store.splits == "test").any():
        raise UserError("store: no row has split 'test'; fill the manifest's split column and curate again")


def _check_sizes(
    model: EvaluationModel, protocols: Sequence[str], finetune: FineTuneSettings | None, dense_size: int | None
) -> None:
    """Tell now, and not after hours of other protocols, what the encoder cannot read or the installation lacks."""
    module = getattr(model, "module", None)
    if module is None:
        return
    if "dense" in protocols and dense_size is not None:
        check_size(dense_size, module.encoder.patch_size, "--dense-size")
    if set(TRAINED) & set(protocols) and finetune is not None and finetune.size is not None:
        check_size(finetune.size, module.encoder.patch_size, "finetune.size")
    if "lora" in protocols:
        from maskedclip.evaluation.finetune_layers import require_peft

        require_peft()


def _check_prompts(prompts: Overrides | None, tasks: Mapping[str, Task]) -> None:
    names = {NORMAL, *tasks}
    for task in tasks.values():
        names |= {f"{task.name}={value}" for value in task.classes if task.kind != "binary"}
        names |= {str(value) for value in task.classes if task.kind == "nominal"}
    strangers = [label for label in prompts or () if label not in names]
    if strangers:
        raise UserError(f"prompts: {strangers[0]!r} is no label of the store; it has {', '.join(tasks) or 'none'}")


def _rows(store: AnyStore, tasks: Mapping[str, Task], protocols: Sequence[str]) -> NDArray[np.int64]:
    """Test rows, and those rows to learn from that have a label, if anything is learnt."""
    used = store.splits == "test"
    if {*LEARNING, *TRAINED} & set(protocols):
        for task in tasks.values():
            used |= task.known & np.isin(store.splits, ("train", "val"))
    elif "zero_shot" in protocols:  # validation rows calibrate its scores
        for task in tasks.values():
            used |= task.known & (store.splits == "val")
    return np.flatnonzero(used)


def _finite(features: Mapping[str, NDArray], rows: int) -> Mapping[str, NDArray]:
    for name, table in features.items():
        assert len(table) == rows, f"{name}: {len(table)} features for {rows} rows"
        broken = int((~np.isfinite(table)).any(axis=1).sum())
        if broken:
            raise UserError(f"model: {broken} of {rows} '{name}' features are not finite; its training diverged")
    return features


def _fine_tuned(case: Case, protocol: str, settings: FineTuneSettings | None) -> tuple[dict, list[Answered]]:
    """The section of "finetune" or "lora": the encoder's copies, trained for the labels."""
    if not case.tasks:
        return {"skipped": no_labels(case)}, []
    if not hasattr(case.model, "module") or not hasattr(case.store, "image"):
        return {"skipped": "this model cannot be fine-tuned; give a run, timm:NAME or a .safetensors file"}, []
    from maskedclip.evaluation.finetune import fine_tune

    model: Any = case.model
    method = "lora" if protocol == "lora" else "full"
    chosen = replace(settings or FineTuneSettings(), method=method)
    done = fine_tune(model, case.store, case.tasks, case.rows, case.splits, chosen, seed=case.seed)  # type: ignore[arg-type]
    section = {"encoder": scored(case, done.answers) | {"training": done.records}}
    return section, [Answered(protocol=protocol, feature="encoder", answers=done.answers)]


def _dense(case: Case, size: int | None) -> DenseResult | dict:
    """The dense probe of all masks, or why there is none."""
    if not isinstance(case.store, Store):
        return {"skipped": "the dense probe reads masks from the test split of a store on the disk"}
    if not mask_names(case.store):
        return {"skipped": "the store has no mask.* column"}
    if not hasattr(case.model, "patch_features"):
        return {"skipped": "this model gives no patch tokens; give a run, timm:NAME or a .safetensors file"}
    return dense_probe(case.model, case.store, case.weights, size=size, seed=case.seed)


def _subgroups(case: Case, columns: Mapping[str, list], answered: Sequence[Answered]) -> dict:
    patients = case.patients[case.test]
    wanted = {(protocol, "encoder") for protocol in ("linear", *TRAINED)} | {("zero_shot", "projected")}
    return {
        part.protocol: subgroup_scores(columns, case.test_tasks, part.answers, case.weights, patients)
        for part in answered
        if (part.protocol, part.feature) in wanted
    }


def _about(case: Case, protocols: Sequence[str]) -> dict:
    splits = ("train", "val", "test")
    return {
        "version": maskedclip.__version__,
        "model": case.model.fingerprint,
        "store": case.store.fingerprint,
        "labels_fingerprint": labels_fingerprint(case.store),
        "rows": {split: int((case.store.splits == split).sum()) for split in splits},
        "rows_used": {split: int((case.splits == split).sum()) for split in splits},
        "test_patients": int(cluster_codes(case.store.patients[case.store.splits == "test"]).max()) + 1,
        "labels": {
            name: {"kind": task.kind, "classes": list(task.classes), "test": _class_counts(task.on(case.test))}
            for name, task in case.tasks.items()
        },
        "labels_left_out": dict(case.refused),
        "protocols": [protocol for protocol in PROTOCOLS if protocol in protocols],
        "replicates": case.weights.shape[0],
        "seed": case.seed,
    }


def _settings(given: Mapping[str, Any], protocols: Sequence[str]) -> dict[str, Any]:
    """What was given to the protocols that read it, as JSON; null is the default."""
    readers = {"prompts": ("zero_shot",), "finetune": TRAINED, "dense_size": ("dense",)}
    own = {name: value for name, value in given.items() if set(readers[name]) & set(protocols)}
    return json.loads(json.dumps(own))


def _class_counts(task: Task) -> dict[str, int]:
    counts = np.bincount(task.truth[task.known], minlength=len(task.classes))
    return {str(value): int(count) for value, count in zip(task.classes, counts, strict=True)}


def _write(
    out: Path,
    store: AnyStore,
    results: dict,
    tables: list[pa.Table],
    ranks: pa.Table | None,
    draws: pa.Table | None,
    dense: DenseResult | None,
) -> None:
    """The files, the results last: a folder that has them is complete."""
    table = pa.concat_tables(tables) if tables else PREDICTION_SCHEMA.empty_table()
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)  # another call that had claimed it too may have removed it
        pq.write_table(rows_table(store), out / TEST_TABLE, compression="zstd")
        pq.write_table(table, out / "predictions.parquet", compression="zstd")
        if ranks is not None:
            pq.write_table(ranks, out / "retrieval.parquet", compression="zstd")
        if draws is not None:
            pq.write_table(draws, out / DRAWS_TABLE, compression="zstd")
        if dense is not None:
            pq.write_table(dense.table, out / DENSE_TABLE, compression="zstd")
            if dense.shown:
                (out / "dense.png").write_bytes(dense_sheet(dense.shown))
        write_whole(out / "results.json", text)
    except OSError as error:
        raise unwritable(out, error) from error
