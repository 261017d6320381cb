"""SwDPrompts: a prompt a line, and how drafts of several keep each to its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..swd_core.drafts import Draft
from ._host import CATEGORY, io, running_node, supported
from .inputs import checked

NAME = "swd_prompt"  # in a conditioning's options: the text it was made of
MADE = "swd_prompt_made"  # and what that came to, which a host's node may change and leave the name
MOST_PROMPTS = 64
UNTOLD = "one without a known text"
FROM_TEXT = "swd_prompt_alone"  # marks what was encoded of a draft's known text

Texts = Mapping[str, tuple[Any, Any]]  # positive and negative conditioning, by prompt


class SwDPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwDPrompts",
            display_name="SwD Prompts",
            category=CATEGORY,
            description="A prompt a line. SwD Drafts shows each in a row of its sheet, and Finish "
            "SwD Drafts finishes every pick with its own.",
            inputs=[
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="One prompt a line; empty lines are left out.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    is_output_list=True,
                    tooltip="A list, for positive of SwD Drafts and of Finish SwD Drafts. Other "
                    "nodes on the way run once for each.",
                )
            ],
            **supported(io.Schema, search_aliases=["multiple prompts", "prompt list", "wildcard"]),
        )

    @classmethod
    @checked()
    def execute(cls, clip: Any, prompts: str) -> io.NodeOutput:
        found = list(dict.fromkeys(filter(None, map(str.strip, prompts.splitlines()))))
        if not 1 <= len(found) <= MOST_PROMPTS:
            raise ValueError(
                f"prompts has {len(found)} different lines; write 1 to {MOST_PROMPTS} prompts, one "
                "a line."
            )
        return io.NodeOutput(encoded(clip, found))


def encoded(clip: Any, prompts: Sequence[str], **more: Any) -> list[Any]:
    """The conditioning of each, which carries its text, with `more` among its options."""
    made = [(text, clip.encode_from_tokens_scheduled(clip.tokenize(text))) for text in prompts]
    return [
        [
            [context, {**options, NAME: text, MADE: _trace(context), **more}]
            for context, options in entries
        ]
        for text, entries in made
    ]


def _trace(context: Any) -> str:
    """Another one for another tensor; so little that it may travel with it."""
    if not isinstance(context, Tensor) or context.is_nested:
        return ""
    return f"{tuple(context.shape)} {context.detach().cpu().double().sum().item()!r}"


def text_in_graph(node: type[io.ComfyNode]) -> str:
    """What ComfyUI's CLIP Text Encode encodes for a running node's positive; "" where that isn't
    known: so a draft put aside has its prompt with it."""
    graph, at = getattr(node.hidden, "prompt", None) or {}, running_node()
    link = graph.get(at, {}).get("inputs", {}).get("positive")
    for _ in graph:
        source = graph.get(link[0], {}) if isinstance(link, list) else {}
        inputs = source.get("inputs", {})
        if source.get("class_type") == "ConditioningZeroOut":
            return ""
        if source.get("class_type") == "CLIPTextEncode":
            return inputs["text"] if isinstance(inputs.get("text"), str) else ""
        link = inputs.get("conditioning")
    return ""


def named(positive: Sequence[Any], alone: str = "") -> dict[str, bool]:
    """The name of each conditioning, and whether that is the text which alone makes it.

    Those of SwD Prompts have its text, others their place, one alone `alone`.
    """
    found: dict[str, bool] = {}
    for k, entries in enumerate(positive, 1):
        name = str(entries[0][1].get(NAME, ""))
        known = all(
            options.get(NAME) == name and options.get(MADE) == _trace(context)
            for context, options in entries
        )
        if not name:
            name, known = (f"prompt {k}", False) if len(positive) > 1 else (alone, True)
        known = known and name not in found
        while name in found:
            name += f" ({k})"
        found[name] = known
    return found


def by_prompt(names: Mapping[str, bool], positive: Sequence[Any], negative: Sequence[Any]) -> Texts:
    """Conditionings by the names that `named` gives them.

    Raises:
        ValueError: unless there is one negative for all or for each.
    """
    if len(negative) not in (1, len(positive)):
        raise ValueError(
            f"positive brings {len(positive)} prompts and negative {len(negative)}. Connect one "
            "negative, or as many."
        )
    negatives = [*negative] * (len(positive) if len(negative) == 1 else 1)
    return dict(zip(names, zip(positive, negatives, strict=True), strict=True))


def matching(texts: Texts, images: Sequence[Draft]) -> Texts:
    """What each of the drafts is finished with: one alone goes with drafts of one prompt.

    But not what was encoded of known texts (FROM_TEXT): that goes with the drafts that have those.

    Raises:
        ValueError: names the prompt that is missing.
    """
    from_text = [name for name, (positive, _) in texts.items() if positive[0][1].get(FROM_TEXT)]
    wanted = list(dict.fromkeys(draft.prompt for draft in images))
    if len(wanted) == len(texts) == 1 and not from_text:
        return dict.fromkeys(wanted, *texts.values())
    missing = [prompt for prompt in wanted if prompt not in texts]
    missing += [d.prompt for d in images if d.prompt in from_text and not d.known]
    if missing:
        raise ValueError(
            f"The picks are of {len(wanted)} prompts, and positive brings {len(texts)}, among them "
            f"not {missing[0] or UNTOLD!r:.60}. Connect to the finishing node what SwD Drafts got "
            "for positive."
        )
    return texts


NODES = [SwDPrompts]
