"""Distil from a timm checkpoint by one of our methods, with a teacher made fast for inference.

python examples/timm_teacher.py IMAGES MODEL CHECKPOINT

IMAGES has one folder for each class, in the order of the checkpoint's logits; MODEL is timm's name of the network.
"""

import argparse

import timm
import torch
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from scenedistill.losses import METHODS, DistillationLoss, TeacherStatistics, build_losses
from scenedistill.models import SceneNet, build_student
from scenedistill.models.freeze import freeze

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images")
parser.add_argument("model")
parser.add_argument("checkpoint")
parser.add_argument("--method", default="dkd_plus", help=", ".join(METHODS))
parser.add_argument("--student", default="table1_resnet", help="one of ours, or any timm network")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--batch", type=int, default=64)
args = parser.parse_args()
cuda = torch.cuda.is_available()
device = torch.device("cuda" if cuda else "cpu")

# images in 0..1: each network normalises them itself, as it was trained
augment = T.Compose([T.RandomResizedCrop(args.size, (0.25, 1.0)), T.RandomHorizontalFlip(), T.ToTensor()])
whole = T.Compose([T.Resize((args.size, args.size)), T.ToTensor()])
images = ImageFolder(args.images, augment)
loader = DataLoader(images, args.batch, shuffle=True, drop_last=True)
measured = DataLoader(ImageFolder(args.images, whole), args.batch)

network = timm.create_model(args.model, num_classes=len(images.classes), checkpoint_path=args.checkpoint)
settings = timm.data.resolve_model_data_config(network)  # type: ignore[attr-defined, no-untyped-call]
net = SceneNet.wrap(network, normalisation=(settings["mean"], settings["std"]), image_size=args.size)
teacher = freeze(net, precision="bf16" if cuda else "fp32", device=device, image_size=args.size)
right = sum(int((teacher(view.to(device)).logits.argmax(1).cpu() == labels).sum()) for view, labels in measured)
print(f"The teacher is right on {right / len(images):.1%} of the images; near chance, the order of classes is wrong.")

weights = METHODS[args.method]
student = build_student(args.student, len(images.classes), image_size=args.size).to(device)
losses = build_losses(weights, student.dims, teacher.dims).to(device)
statistics = TeacherStatistics.measure(teacher, measured)
for loss in losses.values():
    assert isinstance(loss, DistillationLoss)
    loss.prepare(statistics)
asked = {name: any(getattr(loss, f"needs_{name}") for loss in losses.values()) for name in ("attention", "features")}
optimizer = torch.optim.AdamW([*student.parameters(), *losses.parameters()], 1e-3, weight_decay=0.05)
for epoch in range(args.epochs):
    for view, labels in ((view.to(device), labels.to(device)) for view, labels in loader):
        target, output = teacher(view, **asked), student(view, **asked)
        parts = {name: loss(output, target, labels) for name, loss in losses.items()}
        optimizer.zero_grad()
        sum(weights[name] * part for name, part in parts.items()).backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {part.item():.3f}" for name, part in parts.items()))
