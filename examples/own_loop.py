"""Distil by `dkd` in a plain PyTorch loop: your data set, transforms and teacher, our student or yours.

python examples/own_loop.py IMAGES TEACHER.pth

IMAGES has one folder for each class. TEACHER.pth is the state_dict of a torchvision ResNet that knows these classes.
"""

import argparse

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from scenedistill.losses import DualAttentionLoss, SpatialStructureLoss, TeacherStatistics
from scenedistill.models import STUDENTS, SceneNet, build_student

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images")
parser.add_argument("teacher")
parser.add_argument("--architecture", default="resnet50", help="of the teacher")
parser.add_argument("--student", default="table1_resnet", help="one of ours, or a ResNet of torchvision")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--out", default="student.pth")
args = parser.parse_args()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

normal = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
augment = [T.RandomResizedCrop(args.size, (0.25, 1.0)), T.RandomHorizontalFlip(), T.RandomVerticalFlip()]
images = ImageFolder(args.images, T.Compose([*augment, *normal]))
whole = ImageFolder(args.images, T.Compose([T.Resize((args.size, args.size)), *normal]))
loader = DataLoader(images, args.batch, shuffle=True, drop_last=True)
classes, stages = len(images.classes), ["layer1", "layer2", "layer3", "layer4"]

# the transforms normalise, so no network does: normalise=False for ours, no mean and std for a wrapped one
network = torchvision.models.get_model(args.architecture, num_classes=classes)
network.load_state_dict(torch.load(args.teacher, weights_only=True))
teacher = SceneNet.wrap(network, stages, image_size=args.size).to(device).eval()  # keeps its head
if ours := args.student in STUDENTS:
    student = build_student(args.student, classes, image_size=args.size, normalise=False)
else:
    student = SceneNet.wrap(torchvision.models.get_model(args.student, num_classes=classes), stages)

da, ss = (kind(student.dims, teacher.dims) for kind in (DualAttentionLoss, SpatialStructureLoss))
parts = nn.ModuleList([student, da, ss]).to(device)  # the losses' adapters learn too, and are discarded
statistics = TeacherStatistics.measure(teacher, DataLoader(whole, args.batch))
for loss in (da, ss):
    loss.prepare(statistics)
optimizer = torch.optim.SGD(parts.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
for epoch in range(args.epochs):
    for view, labels in ((view.to(device), labels.to(device)) for view, labels in loader):
        with torch.no_grad():
            target = teacher(view)
        output = student(view)
        total = F.cross_entropy(output.logits, labels) + 30 * da(output, target, labels) + ss(output, target, labels)
        optimizer.zero_grad()
        total.backward()
        for part in parts:  # each by its own norm: the adapters' gradients are large
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
    schedule.step()
    print(f"epoch {epoch + 1}: loss {total.item():.3f}")
torch.save((student if ours else student.unwrapped()).state_dict(), args.out)
