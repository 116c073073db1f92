"""Test of a finished network on the test images."""

from __future__ import annotations

import time
from dataclasses import asdict

from scenedistill.core.terminal import counted
from scenedistill.data.batches import ScenePart
from scenedistill.experiments.context import Experiment, SeedContext
from scenedistill.experiments.results.record import Row
from scenedistill.experiments.stages.files import BEST_WEIGHTS, open_net
from scenedistill.metrics.accuracy import scene_metrics
from scenedistill.metrics.cost import model_cost
from scenedistill.metrics.outputs import OUTPUTS, save_outputs
from scenedistill.metrics.plots import write_confusion
from scenedistill.metrics.predict import predict_logits
from scenedistill.models.files import load_net
from scenedistill.training.distributed import world_size
from scenedistill.training.runs import RECORD as STAGE
from scenedistill.training.runs import Stage, started_from


def test(context: SeedContext, stage: Stage, variant: str) -> Row:
    """Test a finished network on the test split, once, and store the results.

    The image size is that of the run, also for a given teacher that was trained at another size.
    """
    folder, split = context.experiment.folder, context.split
    final = Stage(stage.folder / "evaluation", {"of": stage.fingerprint, "test": split.hash})
    problem = "its stage.json is damaged" if final.damaged else final.damage()
    if problem or not final.done:
        if problem:
            context.say(f"{folder.name_of(final)}: {problem}; the network is tested again")
        if context.experiment.lead or world_size() > 1:
            with folder.hold(stage):
                _test(context, final, stage)
        final.wait()
    seen, name = final.record, str(stage.record["name"])
    cost, teachers = seen["cost"], {"teacher": name, "plain": None}
    return Row(
        variant=variant,
        student=None if variant == "teacher" else name,
        teacher=teachers.get(variant, stage.record.get("teacher", context.config.teacher.name)),
        seed=context.seed,
        oa=seen["oa"],
        aa=seen["aa"],
        kappa=seen["kappa"],
        macro_f1=seen["macro_f1"],
        parameters=cost["parameters"],
        milliseconds=cost["milliseconds"],
        more={
            "weights": started_from(stage.settings),
            "bytes": cost["bytes"],
            "operations": cost["operations"],
            "train_seconds": stage.record["seconds"],
            "test_seconds": seen["seconds"],
            "peak_memory_mib": stage.record.get("peak_memory_mib"),
            **{name: seen[name] for name in ("best_epoch", "best_epoch_oa") if name in seen},
        },
    )


def _test_best(experiment: Experiment, stage: Stage, part: ScenePart) -> dict[str, float]:
    """Test the weights of the best validation epoch, if they were stored; return the number of the epoch and its OA."""
    kept = stage.record.get("best")
    if not kept:
        return {}
    net, _ = load_net(stage.folder / BEST_WEIGHTS)
    size = experiment.config.image_size
    logits = predict_logits(net, part, image_size=size, device=experiment.device, precision=experiment.precision)
    oa = scene_metrics(logits.argmax(1), part.labels, experiment.classes).oa
    return {"best_epoch": kept["epoch"], "best_epoch_oa": oa}


def _test(context: SeedContext, final: Stage, stage: Stage) -> None:
    """Run the test in all processes of the training, each on its share of the images; the first stores the results."""
    net, card = open_net(stage)
    experiment, split, size = context.experiment, context.split, context.config.image_size
    part = ScenePart(experiment.images.cache, split.test)
    started = time.monotonic()
    logits = predict_logits(net, part, image_size=size, device=experiment.device, precision=experiment.precision)
    seconds = time.monotonic() - started
    best = _test_best(experiment, stage, part)
    if not experiment.lead:
        return
    metrics = scene_metrics(logits.argmax(1), part.labels, experiment.classes)
    final.begin_empty()
    save_outputs(logits, part.labels, split.test, final.folder / OUTPUTS)
    write_confusion(metrics, final.folder, "test")
    context.say(
        f"{experiment.folder.name_of(stage)}: OA {metrics.oa:.2%}  AA {metrics.aa:.2%}  kappa {metrics.kappa:.4f}  "
        f"on {counted(len(part), 'test image')}"
    )
    if best:
        context.say(
            f"  its best epoch on the validation images was {best['best_epoch']}: OA {best['best_epoch_oa']:.2%}"
        )
    final.finish(
        {
            **best,
            "oa": metrics.oa,
            "aa": metrics.aa,
            "kappa": metrics.kappa,
            "macro_f1": metrics.macro_f1,
            "per_class": metrics.per_class,
            "images": len(part),
            "seconds": round(seconds, 2),
            "cost": asdict(model_cost(net, size, card.bands)),
        },
        [file.name for file in final.folder.iterdir() if file.name != STAGE],
    )
