"""ResNet-50 trained on a data set of this project's shards, with DistributedDataParallel.

    torchrun --nproc-per-node 8 examples/resnet50.py --data /data/shards --out runs/resnet50

The recipe: 90 epochs, batch 256 over all GPUs, SGD at 0.1, divided by ten every 30 epochs.
The same command continues a killed run, with the very batches that it would have had.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import CenterCrop, ImageLoader, RandomResizedCrop


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or URL of the shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--model", default="resnet50", help="name of a model of torchvision.models")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--steps", type=int, help="end this command after so many")
    parser.add_argument("--batch-size", type=int, default=256, help="images of a step, over all GPUs")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--save-every", type=int, default=1000, help="steps between checkpoints")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    args = parse_arguments(words)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")

    # The loaders come first: they set what CUDA reads when it starts
    if args.batch_size % world_size:
        raise SystemExit(f"--batch-size {args.batch_size} does not divide by {world_size} processes: choose a multiple")
    ours, size = args.batch_size // world_size, args.size
    train = ImageLoader(args.data, RandomResizedCrop(size, channels_last=on_gpu), ours, device=device)
    val = ImageLoader(args.data, CenterCrop(size, resize=size * 8 // 7, channels_last=on_gpu), ours, device=device)

    if on_gpu:
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    torch.manual_seed(0)
    model = getattr(torchvision.models, args.model)(num_classes=len(train.classes))
    model.to(device, memory_format=torch.channels_last if on_gpu else torch.contiguous_format)
    parallel = DistributedDataParallel(model) if world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)

    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    step, errors = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        train.load_state_dict(state["train"])
        step, errors = state["step"], state["errors"]

    def save() -> None:
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "train": train.state_dict()}
            torch.save({**state, "step": step, "errors": errors}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)

    last_step = step + args.steps if args.steps else None
    while len(errors) < args.epochs:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * 0.1 ** (len(errors) // 30)
        for images, labels in train:  # after resuming the rest of an epoch, which may be none of it
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                loss = nn.functional.cross_entropy(parallel(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if rank == 0 and (step % 50 == 0 or step == 1):
                print(f"step {step} loss {loss.item():.3f}", flush=True)
            if step % args.save_every == 0 or step == last_step:
                save()
            if step == last_step and step % len(train):  # in the middle of an epoch
                break
        else:
            errors = [*errors, evaluate(model, val, device)]
            save()
            if rank == 0:
                print(f"epoch {len(errors)} top-1 error {100 * errors[-1]:.2f} %", flush=True)
        if step == last_step:
            break
    if world_size > 1:
        dist.destroy_process_group()


@torch.inference_mode()
def evaluate(model: nn.Module, val: ImageLoader, device: torch.device) -> float:
    """The top-1 error: every image of the val split counts once, on whichever rank it comes."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=device)  # right, images
    for images, labels in val:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            right = (model(images).argmax(dim=1) == labels).sum()
        counts += torch.stack([right, right.new_tensor(len(labels))])
    if dist.is_initialized():
        dist.all_reduce(counts)
    model.train()
    right, images = counts.tolist()
    return 1 - right / images


if __name__ == "__main__":
    main()
