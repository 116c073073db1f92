"""Train teacher and student with Lightning's own Trainer on our data module, with any callbacks and loggers.

python examples/lightning_trainer.py IMAGES OUT

IMAGES has one folder for each class.
"""

import argparse
from pathlib import Path

import lightning as L
import torch

from scenedistill.config import StudentConfig, StudentFitConfig, TeacherConfig, TeacherFitConfig
from scenedistill.data import SceneDataModule, ScenePart, ViewConfig, build_cache, make_split, scan
from scenedistill.losses import METHODS
from scenedistill.models import NetCard, build_student, build_teacher, save_net
from scenedistill.training import Knowledge, StudentTraining, Teachers, TeacherTraining

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--teacher", default="resnet18", help="any timm network")
parser.add_argument("--student", default="table1_resnet", help="one of ours, or any timm network")
parser.add_argument("--size", type=int, default=96)
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch", type=int, default=64)
args = parser.parse_args()

index = scan(args.images)
split = make_split(index, train_ratio=0.8, seed=0, val_fraction=0.1)
cache = build_cache(index, args.size, folder=args.out / "cache")
views, common = ViewConfig(), {"image_size": args.size, "seed": 0}
fit = {"epochs": args.epochs, "batch_size": args.batch, "warmup_epochs": 1}


def train(module: TeacherTraining | StudentTraining, name: str, images_per_class: int = 0) -> None:
    """Train a network and save it as a file for `scenedistill predict`, `export` and `serve`."""
    data = SceneDataModule(cache, split, batch_size=args.batch, seed=0, images_per_class=images_per_class)
    trainer = L.Trainer(
        max_epochs=args.epochs, default_root_dir=args.out / name, use_distributed_sampler=False, gradient_clip_val=1.0
    )
    trainer.fit(module, data)
    trained = args.teacher if name == "teacher" else args.student
    save_net(module.net, NetCard(trained, index.classes, 3, args.size), args.out / f"{name}.safetensors")


net = build_teacher(args.teacher, len(index.classes), image_size=args.size)
teaching = TeacherConfig(fit=TeacherFitConfig(**fit, optimizer="adamw", lr=1e-3))
train(TeacherTraining(net, teaching, views, **common), "teacher", images_per_class=2)

# the teacher gets the student's views and is not part of the trained module
teachers = Teachers([net], precision="fp32", image_size=args.size)
knowledge = Knowledge(teachers, ScenePart(cache, split.train), views=0, config=views, seed=0)
_, right = knowledge.statistics(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
print(f"The teacher is right on {right:.1%} of the training images.")
student = build_student(args.student, len(index.classes), image_size=args.size)
learning = StudentConfig(fit=StudentFitConfig(**fit, optimizer="sgd", lr=0.05))
train(StudentTraining(student, learning, METHODS["dkd"], views, knowledge=knowledge, **common), "student")
