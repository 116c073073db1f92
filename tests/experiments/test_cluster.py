"""A grid on a real Ray cluster of this machine, of two workers of which one is killed on the way."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from scenedistill.config import (
    DataConfig,
    FitConfig,
    MachineConfig,
    RunConfig,
    StudentConfig,
    StudentFitConfig,
    TeacherConfig,
    TeacherFitConfig,
)
from scenedistill.core.cluster import ClusterConfig, room
from scenedistill.core.errors import UserError
from scenedistill.experiments.grid.cluster import RayEngine, on_cluster, with_absolute_paths
from scenedistill.experiments.grid.config import GridConfig, MethodConfig
from scenedistill.experiments.grid.run import grid

STUDENT = "table1_printed"


@pytest.fixture
def config(tiny_scenes: Path, tmp_path: Path) -> GridConfig:
    fit = FitConfig(epochs=1, batch_size=16, lr=0.02, warmup_epochs=0)
    return GridConfig(
        datasets={"scenes": str(tiny_scenes)},
        ratios=[0.5],
        seeds=[0, 1],
        students=[STUDENT],
        methods={"plain": MethodConfig(epochs=60), "dkd": MethodConfig()},
        cluster=ClusterConfig(gpus=0),
        base=RunConfig(
            image_size=32,
            data=DataConfig(stored_size=32, cache_dir=tmp_path / "cache"),
            teacher=TeacherConfig(name=STUDENT, weights="none", min_oa=0.0, fit=TeacherFitConfig(**vars(fit))),
            student=StudentConfig(knowledge_views=1, fit=StudentFitConfig(**vars(fit))),
            machine=MachineConfig(accelerator="cpu"),
        ),
    )


@pytest.mark.slow
def test_a_cell_of_a_dead_worker_resumes_on_another(config: GridConfig, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
    out = tmp_path / "out"
    folder = out / "scenes-50" / "seed0" / STUDENT
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        """The worker of the first long training, once it has finished an epoch."""
        while not stop.wait(0.01):
            if (folder / "plain" / "checkpoints" / "last.ckpt").exists():
                found = re.match(r"process (\d+) on ", (folder / ".plain.holder").read_text(encoding="utf-8"))
                assert found
                killed.append(int(found[1]))
                os.kill(killed[0], signal.SIGKILL)
                return

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    killer = threading.Thread(target=kill, daemon=True)
    try:
        prepared, engine = on_cluster(config)
        assert engine.slots == 2 and prepared.base.machine.precision in ("fp32", "bf16")
        killer.start()
        said = io.StringIO()
        outcome = grid(prepared, out, engine=engine, console=Console(file=said, width=300))
    finally:
        stop.set()
        ray.shutdown()
    assert killed and not outcome.failures, said.getvalue()
    rows = {(row.variant, row.seed) for row in outcome.results["scenes-50"].rows}
    assert rows == {(variant, seed) for variant in ("teacher", "plain", "dkd") for seed in (0, 1)}
    log = out / "logs" / "scenes-50" / "seed0" / STUDENT / "plain.log"
    assert 60 <= log.read_text(encoding="utf-8").count("  epoch ") <= 62, "from its last epoch, not from the start"


def test_all_paths_are_absolute_for_workers_with_another_folder(
    config: GridConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("net.pth", "more.pth"):
        Path(name).touch()
    Path("classes.txt").write_text("a\nb\n", encoding="utf-8")
    config.datasets = {"scenes": "images"}
    config.weights = {STUDENT: "net.pth"}
    config.methods["dkd"] = MethodConfig(weights="lite", also=["seed{seed}/net.safetensors"])
    config.base.data = DataConfig(cache_dir=Path("cache"), split_file=Path("split.csv"), unlabelled=[Path("more")])
    config.base.teacher.weights, config.base.teacher.checkpoint = "more.pth", Path("teacher.safetensors")
    config.base.teacher.classes = "classes.txt"
    config.base.student.weights = "timm"
    found, data = with_absolute_paths(config), with_absolute_paths(config).base.data
    assert found.datasets == {"scenes": str(tmp_path / "images")}
    assert found.weights == {STUDENT: str(tmp_path / "net.pth")}
    assert found.methods["dkd"].weights == "lite" and found.methods["plain"] == config.methods["plain"]
    assert found.methods["dkd"].also == [str(tmp_path / "seed{seed}" / "net.safetensors")]
    assert (data.cache_dir, data.split_file) == (tmp_path / "cache", tmp_path / "split.csv")
    assert data.unlabelled == [tmp_path / "more"]
    teacher = found.base.teacher
    assert (teacher.weights, teacher.checkpoint) == (str(tmp_path / "more.pth"), tmp_path / "teacher.safetensors")
    assert teacher.classes == ["a", "b"] and found.base.student.weights == "timm"


def test_without_ray_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'scenedistill\[ray\]'"):
        RayEngine(ClusterConfig())


@pytest.mark.slow
def test_a_cell_larger_than_the_cluster_is_refused() -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        with pytest.raises(
            UserError, match=r"A cell takes 2 CPUs .* of one machine, and the cluster's machines have 1 and 0"
        ):
            RayEngine(ClusterConfig(cpus=2, gpus=0))
        assert ray.is_initialized(), "a cluster of others is left alone"
    finally:
        ray.shutdown()


def test_a_cell_has_to_fit_into_one_machine() -> None:
    two_cores, one_gpu = {"CPU": 2.0}, {"CPU": 16.0, "GPU": 1.0}
    assert room(two_cores, cpus=4, gpus=0) == 0  # however many such machines there are
    assert (room(two_cores, cpus=1, gpus=0), room(two_cores, cpus=1, gpus=0.5)) == (2, 0)
    assert (room(one_gpu, cpus=1, gpus=0.25), room(one_gpu, cpus=8, gpus=0.25)) == (4, 2)
