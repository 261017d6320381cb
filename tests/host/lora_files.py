"""Students as PEFT writes them, for the tests of the LoRA loader."""

import copy

import pytest
import torch

peft = pytest.importorskip("peft")

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ADDED = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
MLP = ["net.0.proj", "net.2"]
TIME = ["timestep_embedder.linear_1", "timestep_embedder.linear_2", "text_embedder.linear_1"]
NORMS = ["norm1.linear", "norm1_context.linear", "norm_out.linear"]
# Every kind of layer that the students' trainer can adapt, and all others that a LoRA may.
TARGETS = {
    "sd35-medium": [*ATTENTION, *ADDED, *MLP, *TIME, *NORMS, "proj_out", "context_embedder"],
    "sd35-large": [*ATTENTION, *ADDED, *MLP, *TIME, *NORMS, "proj_out", "context_embedder"],
    "flux": [
        *ATTENTION, *ADDED, *MLP, *TIME, *NORMS, "norm.linear", "proj_mlp", "proj_out",
        "x_embedder", "context_embedder", "guidance_embedder.linear_1",
    ],
    "sdxl": [
        *ATTENTION, *MLP, "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj",
        "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out",
        "time_embedding.linear_1", "add_embedding.linear_2",
    ],
}  # fmt: skip
SHORT = [*ATTENTION, *MLP]


def publish(small, family, folder, targets, **options):
    """A random student of `family` as PEFT saves it, and the diffusers model that wears it."""
    torch.manual_seed(2)
    config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(copy.deepcopy(small.reference(family)), config)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


@torch.inference_mode()
def load(pack, model, name, strength=1.0):
    out = pack["SwDLoraLoader"].execute(model=model, lora_name=name, strength=strength)
    return out.args
