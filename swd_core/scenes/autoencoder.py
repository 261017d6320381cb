"""The embedded autoencoder: 16 latent channels, factor 8, in ComfyUI's TAESD file format."""

import torch
from torch import Tensor, nn

FACTOR = 8
LATENT_CHANNELS = 16
FULL_WIDTHS = (
    64,
    64,
    64,
    64,
)  # channels at 1/1, 1/2, 1/4 and 1/8 of the image; what the format requires
# SD3's latent format, applied by the host around the model: model space = (latent - shift) * scale.
VAE_SCALE, VAE_SHIFT = 1.5305, 0.0609


def conv(channels_in: int, channels_out: int, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **kwargs)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def encoder(widths: tuple[int, ...] = FULL_WIDTHS) -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, widths[0]), Block(widths[0])]
    for before, width in zip(widths, widths[1:], strict=False):
        layers += [conv(before, width, stride=2, bias=False), *(Block(width) for _ in range(3))]
    return nn.Sequential(*layers, conv(widths[-1], LATENT_CHANNELS))


def decoder(widths: tuple[int, ...] = FULL_WIDTHS) -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), conv(LATENT_CHANNELS, widths[-1]), nn.ReLU()]
    for before, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
        layers += [*(Block(before) for _ in range(3)), nn.Upsample(scale_factor=2)]
        layers.append(conv(before, width, bias=False))
    return nn.Sequential(*layers, Block(widths[0]), conv(widths[0], 3))


class Autoencoder(nn.Module):
    """TAESD layout (Ollin Boer Bohan, MIT) with 16 latent channels.

    `encode` and `decode` work in the model's latent space (zero mean, unit variance); the file's
    `vae_scale` and `vae_shift` let the host's own VAE loader and SD3 latent format do the same.
    """

    def __init__(self, widths: tuple[int, ...] = FULL_WIDTHS):
        super().__init__()
        self.taesd_encoder = encoder(widths)
        self.taesd_decoder = decoder(widths)
        self.register_buffer("vae_scale", torch.tensor(VAE_SCALE))
        self.register_buffer("vae_shift", torch.tensor(VAE_SHIFT))

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "Autoencoder":
        """Builds the autoencoder of a file, without the channels that are mere padding (`widen`).

        Raises:
            ValueError: if the tensors are not those of such an autoencoder.
        """
        try:
            entries = [state[f"taesd_encoder.{i}.weight"] for i in (0, 2, 6, 10)]
            widths = tuple(int(w.flatten(1).any(1).nonzero().max()) + 1 for w in entries)
            model = cls(widths)
            shapes = {k: v.shape for k, v in model.state_dict().items()}
            model.load_state_dict(
                {k: state[k][tuple(slice(n) for n in shape)] for k, shape in shapes.items()}
            )
        except (KeyError, RuntimeError, IndexError) as error:
            raise ValueError(
                "These weights are not a 16-channel TAESD autoencoder: "
                f"{str(error).splitlines()[0]}"
            ) from error
        return model.to(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, 8H, 8W) in [0, 1] to latents (B, 16, H, W)."""
        return self.taesd_encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 16, H, W) to images (B, 3, 8H, 8W), about [0, 1], not clamped."""
        return self.taesd_decoder(latents)


def widen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pads a narrower autoencoder's weights with zeros to the format's widths: same function."""
    wide = Autoencoder().state_dict()
    for key, value in state.items():
        target = torch.zeros_like(wide[key])
        target[tuple(slice(n) for n in value.shape)] = value
        wide[key] = target
    return wide
