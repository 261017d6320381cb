"""SwD Spectrum on latents whose law is known, and the growth schedule that goes by it."""

import math
import re

import pytest
import scipy.fft
import torch
from grown import growth

AMPLITUDE, EXPONENT, SIDE = 40.0, 1.7, 32


@pytest.fixture(autouse=True)
def user_folder(pack, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return tmp_path


def fields(count, channels, amplitude=AMPLITUDE):
    """Gaussian fields with power A w^-beta, w in cycles a picture; the mean as half a cycle."""
    half = torch.arange(SIDE).double() / 2
    power = amplitude * torch.hypot(half[:, None], half[None]).clamp(min=0.5) ** -EXPONENT
    generator = torch.Generator().manual_seed(4)
    waves = torch.randn(count, channels, SIDE, SIDE, generator=generator).double() * power.sqrt()
    values = scipy.fft.idctn(waves.numpy(), axes=(-2, -1), norm="ortho")
    return torch.from_numpy(values).float()


def spectrum(pack, model, x0, **more):
    latent = {"samples": model.model.process_latent_out(x0)}
    return pack["SwDSpectrum"].execute(model=model, latent=latent, **{"keep": True, **more}).args


@pytest.mark.parametrize("family", ["sd35-medium", "sdxl"])
def test_the_law_is_that_of_the_latents_in_the_models_own_units(pack, models, family):
    model = models[family]
    channels = model.get_model_object("latent_format").latent_channels
    table, plot = spectrum(pack, model, fields(24, channels))
    amplitude, exponent = map(float, re.search(r"power ([\d.]+) w\^-([\d.]+)", table).groups())
    assert abs(exponent - EXPONENT) < 0.1 and abs(math.log(amplitude / AMPLITUDE)) < 0.25
    assert "24 pictures" in table and plot.ndim == 4 and plot.std() > 0.05


def test_a_kept_law_is_what_the_schedule_goes_by(pack, models, user_folder):
    """Latents of next to no power need fine sizes only near the end."""
    model = models["sd35-medium"]
    settings = {"steps": 20, "tolerance": "balanced"}
    before = growth(pack, model, **settings)
    assert "none is known of this model's VAE (SD3)" in before[2]
    spectrum(pack, model, fields(16, 16, 0.2), keep=False)
    assert growth(pack, model, **settings)[0] == before[0]
    table, _ = spectrum(pack, model, fields(16, 16, 0.2))
    assert table.endswith("kept for models with SD3 latents")
    assert spectrum(pack, model, fields(16, 16, 0.2))[0].endswith("the one measured before")
    table, _ = spectrum(pack, models["flux"], fields(16, 16))
    assert "in place of the one that comes with this pack (arXiv 2605.18736" in table
    assert "take it out of swd_spectra.json" in table
    (user_folder / "swd_spectra.json").unlink()
    spectrum(pack, model, fields(16, 16, 0.2))
    after = growth(pack, model, **settings)
    assert after[0].law.vae == "SD3" and "measured on 16 pictures" in after[2]
    assert after[0].cost(128, 128) < before[0].cost(128, 128)
    assert growth(pack, models["flux"], **settings)[0].law.vae == "FLUX.1"


def test_the_table_has_a_safe_size_for_every_sigma(pack, models):
    """Equation 9 of arXiv 2605.18736, solved by bisection, at the picture's own size."""
    model = models["flux"]
    sigmas = torch.tensor([1.0, 0.8, 0.4, 0.0])
    table, _ = spectrum(pack, model, fields(24, 16), sigmas=sigmas)
    a, b = map(float, re.search(r"power ([\d.]+) w\^-([\d.]+)", table).groups())
    rows = [line.split() for line in table.splitlines() if re.match(r" +[01]\.\d{4} ", line)]
    assert [float(row[0]) for row in rows] == pytest.approx(sigmas.tolist(), abs=1e-4)
    for row, sigma in zip(rows, sigmas.tolist(), strict=True):
        for shown, delta in zip(row[1::2], (0.01, 0.05, 0.1), strict=True):
            low, high = 0.0, 1.0
            for _ in range(60):
                share = (low + high) / 2
                p = a * (share * SIDE / 2) ** -b if share else math.inf
                u = sigma / (1 - sigma) if sigma < 1 else math.inf
                lost = 0.0 if math.isinf(u) else p * (1 + p) / (p + u * u)
                low, high = (share, high) if lost > delta else (low, share)
            assert abs(float(shown) - high * SIDE * 8) <= 1.5


def test_bad_input_is_one_clear_error(pack, models):
    model = models["flux"]
    with pytest.raises(ValueError, match="at least 8"):
        spectrum(pack, model, fields(3, 16))
    with pytest.raises(ValueError, match="flat"):
        spectrum(pack, model, torch.zeros(8, 16, SIDE, SIDE))
    with pytest.raises(ValueError, match="only 1 differs from the rest"):
        spectrum(pack, model, fields(1, 16).expand(9, -1, -1, -1))
    with pytest.raises(ValueError, match="neither"):
        pack["SwDSpectrum"].execute(model=model, keep=True)
    with pytest.raises(ValueError, match="without a VAE"):
        pack["SwDSpectrum"].execute(model=model, keep=True, images=torch.zeros(8, 64, 64, 3))
    with pytest.raises(ValueError, match="channels"):
        latent = {"samples": torch.randn(8, 7, SIDE, SIDE)}
        pack["SwDSpectrum"].execute(model=model, keep=True, latent=latent)


@pytest.mark.parametrize("text", ['{"Flux": {"amplitude": "much"}}', "[]", "{", '{"Flux": 7}'])
def test_a_damaged_file_of_kept_laws_is_said_and_not_written_over(pack, models, user_folder, text):
    file = user_folder / "swd_spectra.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="swd_spectra.json can't be read"):
        growth(pack, models["flux"])
    with pytest.raises(ValueError, match="swd_spectra.json can't be read"):
        spectrum(pack, models["flux"], fields(8, 16))
    assert file.read_text() == text
