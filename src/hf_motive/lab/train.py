"""Train the lab's Wan pipeline on simulated clips: `python -m hf_motive.lab.train --out DIR`.

Five stages, each of which resumes where it was stopped (`kill -9` included):

    clips        simulate and draw the training clips                  DIR/work/clips/*.npy
    vae          fit the VAE to them                                   DIR/work/vae.pt
    latents      encode the clips, measure the latents' mean and spread DIR/work/latents/*.pt
    transformer  flow matching on the latents, captions dropped at times DIR/work/transformer.pt
    decoder      fit the VAE's decoder further; the latents stay what they are   DIR/work/decoder.pt

after which DIR/pipeline holds what `WanPipeline.from_pretrained` loads. What a step sees follows from the seed and the
step's number alone, so a resumed run goes the way of an uninterrupted one. Weights are averaged exponentially, so that
stopping at any time gives a usable pipeline; the longer, the better.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import decode_whole, encode_whole
from .pipeline import TEXT_LENGTH, TextPadding, build_pipeline
from .render import render_clip
from .spec import MODEL_FRAMES, ClipSpec, balanced_specs

_CHUNK = 100  # clips a file
_KEYS = 24  # text tokens that training keeps: longer than any caption of the lab
STAGES = ("clips", "vae", "latents", "transformer", "decoder")


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parse(arguments)
    if "clips" in args.stages:
        make_clips(_chunks(args), args.seed, min(args.clips, _CHUNK), args.workers)
    if args.processes == 1:
        _train(0, args)
    else:
        meeting = Path(tempfile.mkdtemp()) / "meeting"
        torch.multiprocessing.spawn(_train, (args, meeting.as_uri()), nprocs=args.processes)


def _chunks(args: Any) -> list[Path]:
    return [Path(args.out) / "work" / "clips" / f"{k:05d}.npy" for k in range(math.ceil(args.clips / _CHUNK))]


def _train(rank: int, args: Any, meeting: str | None = None) -> None:
    """What each process does: all train, the first one speaks and writes."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if meeting is not None:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.processes)
    torch.manual_seed(args.seed)
    work, chunks = Path(args.out) / "work", _chunks(args)
    pipe = build_pipeline(args.seed)
    if "vae" in args.stages:
        train_vae(pipe.vae, chunks[: math.ceil(args.vae_clips / _CHUNK)], work / "vae.pt", args)
    elif (work / "vae.pt").exists():
        pipe.vae.load_state_dict(_load(work / "vae.pt")["average"])
    if "latents" in args.stages:
        encode_clips(pipe, chunks[rank :: args.processes], work / "latents", args)
        if meeting is not None:
            dist.barrier()
    if "transformer" in args.stages:
        train_transformer(pipe, chunks, work, args)
    if "decoder" in args.stages:
        train_decoder(pipe.vae, chunks, work, args)
    elif (work / "decoder.pt").exists():
        _decoder(pipe.vae).load_state_dict(_load(work / "decoder.pt")["average"])
    if meeting is not None:
        dist.destroy_process_group()
    if rank:
        return
    if (work / "latents").exists():
        _set_statistics(pipe.vae, work / "latents")
    if (work / "transformer.pt").exists():
        pipe.transformer.load_state_dict(_load(work / "transformer.pt")["average"])
    save_pipeline(pipe, Path(args.out) / "pipeline")
    print(f"pipeline: {Path(args.out) / 'pipeline'}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hf_motive.lab.train",
        description="Train a small Wan text-to-video pipeline on simulated clips. Run it again to go on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="folder; OUT/pipeline is the result, OUT/work for resuming")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to run, in this order")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=1000, help="of clips, initial weights, and what each step draws")
    parser.add_argument("--clips", type=int, default=4000, help="training clips")
    parser.add_argument("--vae-clips", type=int, default=800, help="the VAE is fitted to the first so many of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw clips")
    parser.add_argument("--processes", type=int, default=1, help="CPU processes that train on a share of each batch")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: torch's own choice")
    parser.add_argument("--vae-steps", type=int, default=4000, help="steps of the VAE")
    parser.add_argument("--decoder-steps", type=int, default=2000, help="further steps of the VAE's decoder")
    parser.add_argument("--vae-batch", type=int, default=16, help="crops a step of the VAE")
    parser.add_argument("--vae-lr", type=float, default=1e-3, help="learning rate of the VAE")
    parser.add_argument("--steps", type=int, default=20000, help="steps of the transformer")
    parser.add_argument("--batch", type=int, default=32, help="clips a step of the transformer")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="learning rate of the transformer")
    parser.add_argument("--decay", type=int, default=0, help="let the learning rate fall to zero over the last steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop each training stage after so long")
    parser.add_argument("--save-minutes", type=float, default=3.0, help="save a checkpoint every so often")
    parser.add_argument("--compile", action="store_true", help="torch.compile the transformer (needs a C++ compiler)")
    return parser.parse_args(arguments)


# ------------------------------------------------------------------------------------------------------ training clips


def training_specs(chunk: int, seed: int, clips: int = _CHUNK) -> list[ClipSpec]:
    """The specs of one file of clips: balanced within the file."""
    return balanced_specs(clips, seed + chunk, static=0.04, moving_camera=0.15, num_frames=MODEL_FRAMES)


def make_clips(paths: Sequence[Path], seed: int, clips: int, workers: int) -> None:
    """Draw what is missing, each file (clips, F, H, W, 3) uint8; a file appears when it is complete."""
    missing = [(path, int(path.stem), seed, clips) for path in paths if not path.exists()]
    if not missing:
        return
    for path in paths[:1]:
        path.parent.mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool(min(workers, len(missing))) as pool:
        for done, _ in enumerate(pool.imap_unordered(_make_chunk, missing), start=1):
            print(f"clips: {done * clips}/{len(missing) * clips}", flush=True)


def _make_chunk(job: tuple[Path, int, int, int]) -> None:
    path, chunk, seed, count = job
    torch.set_num_threads(1)
    clips = [((render_clip(spec).frames + 1) * 127.5).round().byte() for spec in training_specs(chunk, seed, count)]
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, torch.stack(clips).permute(0, 1, 3, 4, 2).numpy())
    partial.replace(path)


# ---------------------------------------------------------------------------------------------------- shared machinery


class _Run:
    """The state of one training: parameters, their average, the optimisers, the step; saved whole or not at all."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], path: Path, args: Any) -> None:
        self.model, self.optimizers, self.path, self.args = model, optimizers, path, args
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.step = 0
        if path.exists():
            state = _load(path)
            model.load_state_dict(state["model"])
            for name, value in state["average"].items():
                self.average[name].copy_(value)
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]
            print(f"{path.stem}: resumed at step {self.step}", flush=True)

    def steps(self, total: int, lr: float, warmup: int = 100) -> Iterator[int]:
        """The steps still to do; after each, the optimisers have stepped on what the body's backward left.

        The learning rate rises over the first `warmup` steps and falls to zero over the last `args.decay` ones.
        """
        start = saved = time.monotonic()
        begin, stop = self.step, False
        while self.step < total and not stop:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
                for group in optimizer.param_groups:
                    group["lr"] = lr * min(
                        1.0, (self.step + 1) / warmup, (total - self.step) / max(self.args.decay, 1)
                    )
            yield self.step
            stop = self._share(time.monotonic() - start > self.args.minutes * 60)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            decay = min(0.998, self.step / (self.step + 10))
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
            if self.first and time.monotonic() - saved > self.args.save_minutes * 60:
                self.save()
                saved = time.monotonic()
            if self.first and (self.step % 50 == 0 or self.step == total):
                rate = (time.monotonic() - start) / (self.step - begin)
                print(f"{self.path.stem}: step {self.step}/{total} {rate:.3f} s/step {self.note}", flush=True)
        if self.first:
            self.save()
        self.model.load_state_dict(self.average)

    note = ""
    first = property(lambda self: _rank() == 0)

    def _share(self, stop: bool) -> bool:
        """Average the gradients of all processes; whether any of them wants to stop."""
        if not dist.is_initialized():
            return stop
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([float(stop)])])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        return bool(flat[-1] > 0)

    def report(self, **values: float) -> None:
        """What the progress line says: running means."""
        self._means = {k: 0.98 * getattr(self, "_means", values)[k] + 0.02 * v for k, v in values.items()}
        self.note = " ".join(f"{k} {v:.4f}" for k, v in self._means.items())

    def save(self) -> None:
        partial = self.path.with_suffix(".partial")
        torch.save(
            {
                "model": self.model.state_dict(),
                "average": self.average,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
            },
            partial,
        )
        partial.replace(self.path)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _autocast(device: str) -> Any:
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def _read(paths: Sequence[Path]) -> list[np.ndarray]:
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise SystemExit(f"{len(missing)} files of clips are missing, e.g. {missing[0]}: run the stage `clips` first")
    return [np.load(path, mmap_mode="r") for path in paths]


# ------------------------------------------------------------------------------------------------------------ the VAE


def train_vae(vae: Any, paths: Sequence[Path], state: Path, args: Any) -> None:
    """Reconstruct crops of whole clips: absolute and squared error, edges, and a trace of KL divergence."""
    vae.to(args.device).train()
    run = _Run(vae, [torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.98), weight_decay=0.01)], state, args)
    clips = _read(paths)
    for step in run.steps(args.vae_steps, args.vae_lr):
        rng = np.random.default_rng([args.seed, 1, step, _rank()])
        # Small crops train fastest; every fourth step sees whole frames, as generation does.
        count = max(args.vae_batch // args.processes, 1)
        side, count = (64, max(count // 4, 1)) if step % 4 == 3 else (32, count)
        batch = []
        for _ in range(count):
            chunk = clips[rng.integers(len(clips))]
            clip = chunk[rng.integers(len(chunk))]
            y, x = (rng.integers(n - side + 1) for n in clip.shape[1:3])
            batch.append(clip[:, y : y + side, x : x + side])
        pixels = torch.from_numpy(np.stack(batch)).to(args.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        grid = (MODEL_FRAMES // 4 + 1, side // 4, side // 4)
        noise = torch.from_numpy(rng.standard_normal((count, vae.config.z_dim, *grid), np.float32))
        with _autocast(args.device):
            mean, log_variance = encode_whole(vae, pixels)
            latents = mean.float() + (0.5 * log_variance.float()).exp() * noise.to(args.device)
            error = decode_whole(vae, latents).float() - pixels
        kl = 0.5 * (mean.float() ** 2 + log_variance.float().exp() - 1 - log_variance.float()).mean()
        loss = _reconstruction(error) + 1e-4 * kl
        loss.backward()
        run.report(loss=loss.item(), psnr=10 * math.log10(4 / error.detach().square().mean().item()), kl=kl.item())
    vae.eval()


def _reconstruction(error: Tensor) -> Tensor:
    """Absolute and squared error of the pixels, and absolute error of their differences in space and time."""
    edges = sum(error.diff(dim=dim).abs().mean() for dim in (2, 3, 4))
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def _decoder(vae: Any) -> nn.Module:
    return nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})


def train_decoder(vae: Any, paths: Sequence[Path], work: Path, args: Any) -> None:
    """Decode encoded clips, with a little noise on them as on those that the transformer makes."""
    vae.to(args.device)
    model = _decoder(vae).train()
    run = _Run(model, [torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))], work / "decoder.pt", args)
    clips = _read(paths)
    latents = [_load(work / "latents" / f"{path.stem}.pt") for path in paths]
    count = max(args.vae_batch // 4 // args.processes, 1)
    for step in run.steps(args.decoder_steps, args.vae_lr):
        rng = np.random.default_rng([args.seed, 2, step, _rank()])
        rows = [(chunk, rng.integers(len(clips[chunk]))) for chunk in rng.integers(len(clips), size=count)]
        pixels = torch.from_numpy(np.stack([clips[chunk][row] for chunk, row in rows])).to(args.device)
        pixels = pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        x = torch.stack([latents[chunk][row] for chunk, row in rows]).float()
        x = x + 0.05 * torch.from_numpy(rng.standard_normal(x.shape, np.float32))
        with _autocast(args.device):
            error = decode_whole(vae, x.to(args.device)).float() - pixels
        loss = _reconstruction(error)
        loss.backward()
        run.report(loss=loss.item(), psnr=10 * math.log10(4 / error.detach().square().mean().item()))
    vae.eval()


@torch.no_grad()
def encode_clips(pipe: Any, paths: Sequence[Path], folder: Path, args: Any) -> None:
    """Latents of every clip, (100, C, T, h, w) fp16 a file, and their mean and spread by channel."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = pipe.vae.to(args.device).eval()
    for path in paths:
        target = folder / f"{path.stem}.pt"
        if target.exists():
            continue
        (clips,) = _read([path])
        latents = []
        for i in range(0, len(clips), 10):
            pixels = (
                torch.from_numpy(clips[i : i + 10].copy()).to(args.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
            )
            with _autocast(args.device):
                latents.append(encode_whole(vae, pixels)[0].half().cpu())
        partial = target.with_suffix(".partial")
        torch.save(torch.cat(latents), partial)
        partial.replace(target)
        print(f"latents: {target.stem}", flush=True)


def _set_statistics(vae: Any, folder: Path) -> None:
    """Write the mean and spread of the first encoded clips, by channel, into the VAE's configuration."""
    sample = torch.cat([_load(path) for path in sorted(folder.glob("*.pt"))[:8]]).double()
    std, mean = torch.std_mean(sample, (0, 2, 3, 4))
    vae.register_to_config(
        latents_mean=[round(v, 4) for v in mean.tolist()], latents_std=[round(v, 4) for v in std.tolist()]
    )


# ---------------------------------------------------------------------------------------------------- the transformer


@torch.no_grad()
def _embed(pipe: Any, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (N, 24, D) and how many tokens each caption has (N,); zeros after them."""
    embeds, _ = pipe.encode_prompt(list(captions), do_classifier_free_guidance=False, max_sequence_length=_KEYS)
    lengths = torch.tensor([len(ids) for ids in pipe.tokenizer(list(captions)).input_ids])
    if int(lengths.max()) >= _KEYS:
        raise ValueError(f"a caption has {int(lengths.max())} tokens, training keeps {_KEYS - 1}")
    return embeds.float(), lengths


def _padding_bias(lengths: Tensor, share: float) -> Tensor:
    """(B, 1, 1, 24): 0 for a caption's tokens, share · log(number of pads) for the first pad, none of the others."""
    position = torch.arange(_KEYS, device=lengths.device)[None]
    pads = share * torch.log((TEXT_LENGTH - lengths).float())[:, None]
    bias = torch.where(position == lengths[:, None], pads, torch.full_like(pads, -1e4))
    return torch.where(position < lengths[:, None], torch.zeros_like(bias), bias)[:, None, None]


def train_transformer(pipe: Any, paths: Sequence[Path], work: Path, args: Any) -> None:
    """Flow matching: x_t = (1 − σ) x0 + σ ε, the model predicts ε − x0; σ as the scheduler's shift of 3 spreads it."""
    device = args.device
    _set_statistics(pipe.vae, work / "latents")
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    latents = torch.cat([_load(work / "latents" / f"{path.stem}.pt") for path in paths])
    latents = ((latents.float() - mean) / std).to(torch.bfloat16)
    count = min(args.clips, _CHUNK)
    captions = [spec.caption for path in paths for spec in training_specs(int(path.stem), args.seed, count)]
    embeds, lengths = _embed(pipe, [*captions, ""])  # the last one: no caption
    shift = pipe.scheduler.config.flow_shift

    batch = max(args.batch // args.processes, 1)
    model = pipe.transformer.to(device).train()
    processor = TextPadding()
    usual = dict(model.attn_processors)
    model.set_attn_processor(processor)
    # Matrices inside the blocks by orthogonalised momentum, which needs far fewer steps here; the rest by AdamW.
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    outer = [p for name, p in model.named_parameters() if not (p.ndim == 2 and name.startswith("blocks."))]
    optimizers = [
        torch.optim.Muon(inner, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    run = _Run(model, optimizers, work / "transformer.pt", args)
    forward = torch.compile(model) if args.compile else model
    for step in run.steps(args.steps, args.lr):
        rng = torch.Generator().manual_seed((args.seed * 1_000_003 + step) * 64 + _rank())
        rows = torch.randint(len(latents), (batch,), generator=rng)
        x0 = latents[rows].float()
        noise = torch.randn(x0.shape, generator=rng)
        u = (torch.rand(batch, generator=rng) + torch.arange(batch)) / batch  # stratified
        sigma = shift * u / (1 + (shift - 1) * u)
        rows = torch.where(torch.rand(batch, generator=rng) < 0.1, len(captions), rows)
        processor.bias = _padding_bias(lengths[rows], min(1.0, step / 900)).to(device)
        x0, noise, sigma = x0.to(device), noise.to(device), sigma.to(device)
        blend = sigma.view(-1, 1, 1, 1, 1)
        with _autocast(device):
            velocity = forward(
                (1 - blend) * x0 + blend * noise, sigma * 1000, embeds[rows].to(device), return_dict=False
            )[0]
        loss = F.mse_loss(velocity.float(), noise - x0)
        loss.backward()
        run.report(loss=loss.item())
    model.set_attn_processor(usual)
    model.eval()


def save_pipeline(pipe: Any, folder: Path) -> None:
    """Save the two large parts in bfloat16, which halves the files; unless told otherwise they load as float32."""
    pipe.to("cpu")
    for part in (pipe.vae, pipe.transformer):
        for parameter in part.eval().parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    pipe.save_pretrained(folder)


if __name__ == "__main__":
    main()
