"""rank_pattern and alpha_pattern: PEFT's own rule is the truth, and nothing can take for ever."""

import pytest

from swd_core.lora_config import parse_config

other = pytest.importorskip("peft.utils.other")

MODULES = [
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.attn.to_q",
    "transformer_blocks.11.attn.to_q",
    "transformer_blocks.1.attn2.to_q",
    "transformer_blocks.1.attn.add_q_proj",
    "transformer_blocks.1.ff.net.0.proj",
    "transformer_blocks.1.ff_context.net.0.proj",
    "single_transformer_blocks.1.attn.to_k",
    "single_transformer_blocks.20.proj_mlp",
    "mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0",
    "context_embedder",
    "proj_out",
    "norm_out.linear",
]
FORMS = [
    "to_q", "attn.to_q", "q", "proj", "0", "transformer_blocks.1.attn.to_q", "^proj_out",
    "^to_q", "^context_embedder$", "to_q$", r".*\.to_q", r".*\.transformer_blocks\.1\.attn\.to_q",
    ".*to_q", ".+to_q", ".*", ".*q.*", r".*\.1\..*to_q", r"transformer_blocks\.1\..*",
    r"transformer_blocks\.\d+\.attn\.to_q", r"blocks\.[0-9]+\.proj_mlp", r"\d+.proj",
    "(to_q|to_k)", r".*\.(attn|attn2)\.to_(q|k)", "(?:to_q)", "to_q|to_k", "^proj_out|to_k$",
    r"net\.0\.proj", r".*_blocks\.1\..*",
]  # fmt: skip


def peft_value(patterns: dict, module: str, default: int) -> int:
    """What PEFT gives a module (peft/tuners/lora/model.py)."""
    return patterns.get(other.get_pattern_key(patterns.keys(), module), default)


@pytest.mark.parametrize("form", FORMS)
def test_a_pattern_means_what_it_means_to_peft(form):
    config = parse_config({"lora_alpha": 4, "alpha_pattern": {form: 12}})
    for module in MODULES:
        assert config.scale(module, 1) == peft_value({form: 12}, module, 4), (form, module)


def test_the_first_of_several_patterns_counts():
    orders = [
        {"to_q": 1, ".*to_q": 2, "attn.to_q": 3},
        {".*to_q": 2, "attn.to_q": 3, "to_q": 1},
        {"attn.to_q": 3, "to_q": 1, ".*": 7},
        {"^proj_out": 1, "proj_out": 2, r".*\.proj_mlp": 3, r".*\d+.*": 4},
    ]
    for patterns in orders:
        config = parse_config({"lora_alpha": 9, "alpha_pattern": patterns})
        for module in MODULES:
            assert config.scale(module, 1) == peft_value(patterns, module, 9), (patterns, module)


def test_a_pattern_for_every_layer_is_read():
    """As diffusers writes them: whole names, one for each layer."""
    names = [f"transformer_blocks.{i}.attn.to_{p}" for i in range(400) for p in "qkv"]
    config = parse_config({"r": 1, "rank_pattern": {name: i + 1 for i, name in enumerate(names)}})
    assert config.fits({name: i + 1 for i, name in enumerate(names)})
    assert not config.fits({name: i + 2 for i, name in enumerate(names)})


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "pattern",
    [
        "(.|.)" * 30, "(a|a)" * 30 + "b", "(a+)+$", "(.*)*x", "(a|ab)(c|bcd)" * 20, ".*.*.*.*" * 50,
        "[a-z]+", "a{1000}", "a?" * 40, r"(\w)\1", "(?=to_q)", "(?P<x>to_q)", "to_q*", "(to_q",
        "to_q)", "((to_q))", "\\", "[0-9", "", "to q", "a|" * 5000, r"\d" * 3000,
        "a^b", "a$b", "^^a", "(a|)",
    ],
)  # fmt: skip
def test_any_other_expression_is_one_error(pattern):
    with pytest.raises(ValueError, match=r"(?s)alpha_pattern.*name the layers plainly"):
        parse_config({"lora_alpha": 4, "alpha_pattern": {pattern: 1}})


@pytest.mark.timeout(60)
def test_hostile_names_and_patterns_of_the_allowed_forms_end_soon():
    patterns = {f"{'.*a' * 7}{'b' * i}": i for i in range(1, 8)}
    config = parse_config({"lora_alpha": 4, "alpha_pattern": patterns})
    for length in range(150, 200):
        assert config.scale("a" * length, 1) == 4
    digits = parse_config({"lora_alpha": 4, "alpha_pattern": {r"\d+" * 8 + "x": 1}})
    assert digits.scale("1" * 200, 1) == 4
    many = {f"a.{i}": i for i in range(100_000)}
    assert parse_config({"lora_alpha": 4, "alpha_pattern": many}).scale("a." * 90 + "a.77", 1) == 77
    with pytest.raises(ValueError, match="patterns that are no plain names"):
        parse_config({"lora_alpha": 4, "alpha_pattern": {f".*{i}": 1 for i in range(1000)}})
