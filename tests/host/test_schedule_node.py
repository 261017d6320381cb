"""SwDScaleSchedule on models of every family: what it picks, shows and refuses."""

import json
import os

import pytest
import torch

SDXL_SIGMAS = [14.6146, 5.111, 2.2846, 1.1644, 0.0]
AUTO = {
    "sd35-medium": ("sd35-medium-4", [1, 0.8959, 0.7371, 0.6022, 0]),
    "sd35-large": ("sd35-large-4", [1, 0.8959, 0.7371, 0.6022, 0]),
    "flux": ("flux-4", [1, 0.8956, 0.7363, 0.6007, 0]),
    "sdxl": ("sdxl-4", SDXL_SIGMAS),
    "scenes": ("scenes-4", [1, 0.8959, 0.7371, 0.6022, 0]),
}
NAMES = [
    "sd35-medium-4", "sd35-medium-6", "sd35-medium-4-2025", "sd35-large-4", "sd35-large-6-2025",
    "flux-4", "flux-4-paper", "zimage-4", "qwen-image-4", "flux2-klein-4", "krea2-4", "sdxl-4",
    "wan21-1.3b-4", "scenes-4",
]  # fmt: skip


@pytest.fixture(scope="module")
def model_of(small):
    """The published bases without their numbers, the scene student's kind, and one of no family."""
    import comfy.supported_models

    def build(family):
        if family in small.KINDS:
            return small.full_size(family)[1]
        if family == "scenes":
            context = {"in_features": 256, "out_features": 128}
            config = comfy.supported_models.SD3({
                "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 2,
                "input_size": None, "adm_in_channels": 64, "pos_embed_scaling_factor": None,
                "context_embedder_config": {"target": "torch.nn.Linear", "params": context},
                "x_block_self_attn_layers": [],
            })  # fmt: skip
        else:
            config = comfy.supported_models.SD15({
                **small.SDXL_CONFIG, "context_dim": 768, "adm_in_channels": None,
                "use_linear_in_transformer": False, "num_classes": None,
            })  # fmt: skip
        return small.patcher(config, {}, torch.float32, torch.device("meta"))

    return build


@pytest.fixture
def user_folder(pack, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return tmp_path


def run(pack, model, preset="auto", sizes="", sigmas="", **options):
    node = pack["SwDScaleSchedule"]
    return node.execute(
        model=model, preset=preset, custom_sizes=sizes, custom_sigmas=sigmas, **options
    ).args


def check(pack, preset="custom", sizes="0.5 1", sigmas="1 0.6"):
    return pack["SwDScaleSchedule"].validate_inputs(
        preset=preset, custom_sizes=sizes, custom_sigmas=sigmas
    )


def menu(pack) -> list[str]:
    return pack["SwDScaleSchedule"].INPUT_TYPES()["required"]["preset"][1]["options"]


def latent(width, height):
    return {"samples": torch.zeros(1, 4, height // 8, width // 8)}


@pytest.mark.parametrize("family", AUTO)
def test_auto_picks_the_preset_of_the_loaded_model(pack, model_of, family):
    name, sigmas = AUTO[family]
    schedule, given, table, plot = run(pack, model_of(family))
    assert schedule.name == name
    torch.testing.assert_close(given, torch.tensor(sigmas), rtol=1e-4, atol=1e-5)
    assert table.startswith(f"{name}: 4 steps, 2.2")
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[-1] == 3
    assert 0 <= plot.min() < plot.max() <= 1


def test_sdxl_timesteps_become_the_models_own_sigmas(pack, model_of):
    _, sigmas, table, _ = run(pack, model_of("sdxl"), latent_image=latent(832, 1216))
    torch.testing.assert_close(sigmas, torch.tensor(SDXL_SIGMAS), rtol=1e-4, atol=0)
    # Latent sides are multiples of 4: 0.625 of 104 x 152 cells is 64 x 96, not 65 x 95.
    assert [" ".join(line.split()[1:4]) for line in table.splitlines()[2:6]] == [
        "416 x 608", "512 x 768", "640 x 928", "832 x 1216",
    ]  # fmt: skip
    assert "14.6146" in table


def test_table_says_what_each_step_costs(pack, model_of):
    *_, table, _ = run(pack, model_of("flux"), latent_image=latent(1024, 1024))
    lines = table.splitlines()
    assert lines[0] == "flux-4: 4 steps, 2.20 full-size steps"
    shares = [int(line.split()[-2]) for line in lines[2:6]]
    assert shares == [11, 18, 26, 45]


def test_every_preset_is_in_the_menu_once_between_auto_and_custom(pack, user_folder):
    assert menu(pack) == ["auto", *NAMES, "custom"]


def test_model_of_no_family_gets_the_list(pack, model_of):
    with pytest.raises(ValueError) as error:
        run(pack, model_of("none"))
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize("family", [*AUTO, "none"])
@pytest.mark.parametrize(
    "preset", ["sd35-medium-6", "flux-4", "sdxl-4", "scenes-4", "wan21-1.3b-4"]
)
def test_preset_of_another_family_is_refused_by_name(pack, model_of, preset, family):
    theirs = {"sd35-medium-6": "sd35-medium", "wan21-1.3b-4": "wan"}.get(preset, preset[:-2])
    if family == theirs:
        assert run(pack, model_of(family), preset)[0].name == preset
        return
    with pytest.raises(ValueError, match=f"{preset} is for {theirs} models; the loaded model is"):
        run(pack, model_of(family), preset)


@pytest.mark.parametrize(
    ("sizes", "sigmas", "scales"),
    [
        ("0.5 0.75 1", "1 0.8 0.6", (0.5, 0.75, 1)),
        ("512, 768, 1024", "1, 0.8, 0.6, 0", (0.5, 0.75, 1)),
        ("[64; 96; 128]", "[1.0; .8; 6e-1]", (0.5, 0.75, 1)),
        ("1", "1", (1,)),
    ],
)
def test_custom_lists_may_be_fractions_pixels_or_cells(pack, model_of, sizes, sigmas, scales):
    assert check(pack, sizes=sizes, sigmas=sigmas) is True
    schedule, given, table, _ = run(pack, model_of("flux"), "custom", sizes, sigmas)
    assert schedule.scales == scales and schedule.sigma_kind == "flow"
    assert given[-1] == 0 and len(given) == len(scales) + 1
    assert table.startswith("custom: ")


def test_custom_timesteps_for_sdxl(pack, model_of):
    _, sigmas, *_ = run(pack, model_of("sdxl"), "custom", "512 640 768 1024", "1000 800 600 400")
    torch.testing.assert_close(sigmas, torch.tensor(SDXL_SIGMAS), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("sizes", "sigmas", "says"),
    [
        ("", "1 0.6", "custom_sizes is empty"),
        ("0.5 1", " , ", "custom_sigmas is empty"),
        ("0.5 1", "0", "custom_sigmas is empty"),
        ("0.5 x 1", "1 0.8 0.6", "custom_sizes, step 2: 'x' is not a number"),
        ("0.5 1", "1 0.8 zero", "custom_sigmas, step 3"),
        ("0.5 1", "1 0.8 0.6", "2 scales but 3 sigmas"),
        ("0.5 0.4 1", "1 0.8 0.6", "Step 2: scale 0.4 is below step 1"),
        ("512 1024 768", "1 0.8 0.6", "Step 2: scale 1.33333 is outside"),
        ("0.5 0.75", "1 0.8", "Step 2: the last scale is 0.75"),
        ("0 1", "1 0.8", "Step 1: scale 0 is outside"),
        ("0.5 1", "0.6 1", "Step 2: sigma 1 is not below step 1"),
        ("0.5 1", "0.6 0.6", "Step 2: sigma 0.6 is not below"),
        ("0.5 1", "1 -0.5", "Step 2: sigma -0.5 is outside"),
        ("0.5 1", "1 nan", "step 2: nan is not a finite number"),
        ("nan 1", "1 0.5", "step 1: nan is not a finite number"),
        ("0.5 1", "2000 400", "Step 1: sigma 2000 is outside"),
        ("0.5 1", "14.6146 5.111", "step 1: 14.6146 is no timestep"),
        ("1 " * 1_000_000, "1 0.6", "1000000 values"),
    ],
    ids=lambda text: text[:20],
)
def test_bad_custom_lists_are_refused_as_they_are_typed(pack, model_of, sizes, sigmas, says):
    assert says in check(pack, sizes=sizes, sigmas=sigmas)
    with pytest.raises(ValueError) as error:
        run(pack, model_of("flux"), "custom", sizes, sigmas)
    assert says in str(error.value) and len(str(error.value)) < 300


def test_noise_levels_of_the_wrong_kind_are_refused(pack, model_of):
    with pytest.raises(ValueError, match=r"needs sigmas in 0\.\.1"):
        run(pack, model_of("flux"), "custom", "0.5 1", "1000 400")
    with pytest.raises(ValueError, match="needs timesteps up to 1000"):
        run(pack, model_of("sdxl"), "custom", "0.5 1", "1 0.4")


def test_sdxl_with_another_noise_table_is_refused(pack, model_of):
    """Playground 2.5 is an SDXL whose timesteps aren't 0..999: 800 would be an infinite sigma."""
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM):
        pass

    model = model_of("sdxl").clone()
    model.add_object_patch("model_sampling", Sampling(model.model.model_config))
    with pytest.raises(ValueError, match="sdxl-4 give this model the sigmas"):
        run(pack, model)


def test_lists_are_only_checked_where_they_count(pack):
    assert check(pack, "auto", "nonsense", "") is True
    assert check(pack, "flux-4", "", "nonsense") is True
    assert "There is no preset 'gone'" in check(pack, "gone")


@pytest.mark.parametrize("size", [(1024, 1024), (832, 1216), (1344, 768), (1536, 640), (256, 192)])
def test_the_last_step_has_exactly_the_targets_size(pack, model_of, size):
    for family in ("sd35-large", "flux", "sdxl"):
        *_, table, _ = run(pack, model_of(family), latent_image=latent(*size))
        assert "x".join(table.splitlines()[5].split()[1:4:2]) == f"{size[0]}x{size[1]}"


def test_latent_off_the_models_grid_is_refused(pack, model_of):
    with pytest.raises(ValueError, match="width 101 is not a positive multiple of 2"):
        run(pack, model_of("flux"), latent_image=latent(808, 1024))
    with pytest.raises(ValueError, match="height 98 is not a positive multiple of 4"):
        run(pack, model_of("sdxl"), latent_image=latent(1024, 784))


def test_extend_refuses_what_it_cannot_know(pack, model_of):
    with pytest.raises(ValueError, match="latent_image is not connected"):
        run(pack, model_of("flux"), large_targets="extend")
    with pytest.raises(ValueError, match="ends at pure noise"):
        run(
            pack, model_of("flux"), "custom", "1", "1", latent_image=latent(2048, 2048),
            large_targets="extend",
        )  # fmt: skip


def test_extend_counts_from_the_presets_own_size(pack, model_of):
    """The scene student is of 256 px; a custom schedule counts as one of 1024 px."""
    extend = {"latent_image": latent(1024, 512), "large_targets": "extend"}
    schedule, sigmas, table, _ = run(pack, model_of("scenes"), **extend)
    assert schedule.steps == 7 and len(sigmas) == 8
    assert [row.split()[1:4:2] for row in table.splitlines()[5:-1]] == [
        ["368", "176"], ["512", "256"], ["720", "368"], ["1024", "512"],
    ]  # fmt: skip
    schedule, *_ = run(pack, model_of("scenes"), "custom", "0.5 1", "1 0.6", **extend)
    assert schedule.steps == 2
    stretched = run(pack, model_of("scenes"), latent_image=latent(1024, 512))[0]
    assert stretched.steps == 4, "stretch is what saved graphs get"


MINE = {
    "family": "flux", "provenance": "mine", "title": "Mine", "scales": [1 / 3, 1],
    "sigmas": [1, 0.123456789],
}  # fmt: skip
ODD = {**MINE, "family": "sdxl", "sigmas": [1000, 400], "sigma_kind": "timestep"}


def test_users_presets_travel_in_the_menu_text(pack, model_of, user_folder):
    presets = {"mine": MINE, "odd: v2 (new)": ODD}
    (user_folder / "swd_presets.json").write_text(json.dumps(presets))
    mine, odd = menu(pack)[-3:-1]
    assert mine.startswith("mine (flux): ") and odd.startswith("odd: v2 (new) (sdxl): ")
    (user_folder / "swd_presets.json").unlink()  # another machine
    assert check(pack, mine) is True and check(pack, odd) is True
    schedule = run(pack, model_of("flux"), mine)[0]
    assert schedule.name == "mine" and schedule.sigma_kind == "flow"
    assert schedule.scales == pytest.approx((1 / 3, 1), rel=1e-11)
    assert schedule.sigmas == (1, 0.123456789)
    schedule, sigmas, *_ = run(pack, model_of("sdxl"), odd)
    assert schedule.name == "odd: v2 (new)" and schedule.sigma_kind == "timestep"
    assert sigmas.tolist() == pytest.approx([14.6146, 1.1644, 0], rel=1e-4)
    with pytest.raises(ValueError, match="mine is for flux models; the loaded model is sdxl"):
        run(pack, model_of("sdxl"), mine)
    for broken in (mine.replace("@ 1", "@ 0.1"), mine.replace("@", ""), mine[:-12]):
        assert isinstance(check(pack, broken), str), broken


def test_broken_users_preset_is_reported_and_the_others_load(pack, user_folder, caplog):
    entries = {
        "good": MINE,
        "grows then shrinks": {**MINE, "scales": [1, 0.5]},
        "no family": {k: v for k, v in MINE.items() if k != "family"},
        "not an object": 7,
        "no numbers": {**MINE, "sigmas": "1 0.5"},
    }
    (user_folder / "swd_presets.json").write_text(json.dumps(entries))
    *_, mine, custom = menu(pack)
    assert mine.startswith("good (flux): ") and len(menu(pack)) == len(NAMES) + 3
    for name in list(entries)[1:]:
        assert any("swd_presets.json" in m and repr(name) in m for m in caplog.messages), (
            f"{name} is not reported"
        )


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\\xff"], ids=lambda t: t[:5])
def test_unreadable_users_presets_leave_the_menu_whole(pack, user_folder, caplog, text):
    (user_folder / "swd_presets.json").write_bytes(text.encode("latin-1"))
    assert menu(pack) == ["auto", *NAMES, "custom"]
    assert any("swd_presets.json" in message for message in caplog.messages)


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("gone")])
def test_users_presets_that_are_no_file_are_reported(pack, user_folder, caplog, make):
    make(user_folder / "swd_presets.json")
    assert menu(pack) == ["auto", *NAMES, "custom"]
    assert any("swd_presets.json" in message for message in caplog.messages)


def test_server_refuses_a_bad_list_before_anything_runs(server):
    student = {"class_type": "SwDSceneStudent", "inputs": {"strength": 1.0}}
    values = {"preset": "custom", "custom_sizes": "0.5 0.4 1", "custom_sigmas": "1 0.8 0.6"}
    schedule = {"class_type": "SwDScaleSchedule", "inputs": {"model": ["1", 0], **values}}
    show = {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}}
    refused = json.dumps(server.run({"1": student, "2": schedule, "3": show}))
    assert "Step 2: scale 0.4 is below step 1" in refused and "custom_sizes" in refused
