"""The published recipe, its formulas written anew: losses of student and fake score by peft."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from swd_core.distill.adapters import adapter_state, switched_layers  # noqa: E402
from swd_core.distill.trainer import Trainer  # noqa: E402

PUBLISHED = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
RANK, GUIDANCE = 8, 7.0


@dataclass
class Reference:
    """The same model with the same adapters, by peft, and the head as published."""

    ours: Trainer

    def __post_init__(self):
        base = copy.deepcopy(self.ours.model.module)
        for name, layer in switched_layers(base).items():
            parent, _, leaf = name.rpartition(".")
            setattr(base.get_submodule(parent), leaf, layer.base)
        config = peft.LoraConfig(
            r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=PUBLISHED
        )
        self.model = peft.get_peft_model(base, config, adapter_name="student")
        self.model.add_adapter("fake", config)
        self.layers = {
            name.removeprefix("base_model.model."): layer
            for name, layer in self.model.named_modules()
            if isinstance(layer, peft.tuners.lora.LoraLayer)
        }
        for adapter in ("student", "fake"):
            for name, (down, up) in adapter_state(self.ours.model.module, adapter).items():
                self.layers[name].lora_A[adapter].weight.data.copy_(down)
                self.layers[name].lora_B[adapter].weight.data.copy_(up)
        width = base.inner_dim
        widths = torch.linspace(width, 1, 5, dtype=int).tolist()
        self.head = nn.Sequential(
            *(
                nn.Sequential(nn.LayerNorm(a), nn.GELU(), nn.Linear(a, b))
                for a, b in zip(widths, widths[1:], strict=False)
            )
        )
        for mine, theirs in zip(self.head.parameters(), self.ours.head.parameters(), strict=True):
            mine.data.copy_(theirs.data)
        self.watched = base.transformer_blocks[(len(base.transformer_blocks) - 1) // 2]

    def parameters(self, adapter: str) -> list[nn.Parameter]:
        order = adapter_state(self.ours.model.module, adapter)
        pairs = ((self.layers[n].lora_A, self.layers[n].lora_B) for n in order)
        found = [part[adapter].weight for pair in pairs for part in pair]
        return [p.requires_grad_() for p in found]

    def run(self, adapter, x, sigma, text):
        """x0 and the middle block's picture tokens, with an adapter or with none."""
        seen = []
        handle = self.watched.register_forward_hook(lambda m, a, output: seen.append(output[1]))
        if adapter is None:
            with self.model.disable_adapter():
                v = self.model(x, text.context, text.pooled, sigma * 1000, return_dict=False)[0]
        else:
            self.model.set_adapter(adapter)
            v = self.model(x, text.context, text.pooled, sigma * 1000, return_dict=False)[0]
        handle.remove()
        return x - sigma.view(-1, 1, 1, 1) * v, seen[0]

    def logits(self, tokens):
        return self.head(tokens.mean(1))

    def student(self, seen, noise):
        """x0 of the student, and the real latents and text that it was asked for."""
        interval, real, previous, text = seen
        start = real
        if previous is not None:
            start = F.interpolate(previous, size=interval.size, mode="bicubic")
        x_t = (1 - interval.sigma) * start + interval.sigma * noise
        x0, _ = self.run("student", x_t, torch.full((len(real),), interval.sigma), text)
        return x0, real, text


def noised(x, sigma, noise):
    level = sigma.view(-1, 1, 1, 1)
    return (1 - level) * x + level * noise


def fake_losses(reference: Reference, seen, drawn):
    first, sigma, noise = drawn
    with torch.no_grad():
        x0, real, text = reference.student(seen, first)
    predicted, fake_tokens = reference.run("fake", noised(x0, sigma, noise), sigma, text)
    _, real_tokens = reference.run("fake", noised(real, sigma, noise), sigma, text)
    head = F.softplus(reference.logits(fake_tokens)).mean()
    head = head + F.softplus(-reference.logits(real_tokens)).mean()
    return {"fake": (predicted - x0).square().mean() + 1e-2 * head, "head": head}


def student_losses(reference: Reference, seen, empty, drawn):
    first, sigma, noise, sigma_mmd, noise_mmd = drawn
    x0, real, text = reference.student(seen, first)
    noisy = noised(x0, sigma, noise)
    with torch.no_grad():
        guided, _ = reference.run(None, noisy, sigma, text)
        plain, _ = reference.run(None, noisy, sigma, empty)
        guided = plain + GUIDANCE * (guided - plain)
        fake, _ = reference.run("fake", noisy, sigma, text)
        gradient = (fake - guided) / (x0 - guided).abs().mean((1, 2, 3), keepdim=True)
    # Its gradient with respect to x0 is `gradient` over the number of elements.
    dmd = (x0 - (x0 - gradient).detach()).square().mean() / 2
    _, tokens = reference.run("fake", noisy, sigma, text)
    gan = F.softplus(-reference.logits(tokens)).mean()
    _, fake_tokens = reference.run("fake", noised(x0, sigma_mmd, noise_mmd), sigma_mmd, text)
    _, real_tokens = reference.run("fake", noised(real, sigma_mmd, noise_mmd), sigma_mmd, text)
    d = real_tokens.mean(1) - fake_tokens.mean(1)
    mmd = ((d**2 + 1e-3**2).sqrt() - 1e-3).mean()
    return {"dmd": dmd, "gan": 5e-3 * gan, "mmd": mmd}
