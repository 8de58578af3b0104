"""The card of a trained model: facts to `hub_cards/model.md`, its metadata, and the pictures."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .card_text import clips, code, corpus_name, header, license_entries, license_sentence, markdown
from .cards import ENDS, Card, _drawable, _render
from .model_facts import ENDS_OF_A_SAMPLE, ModelFacts

logger = logging.getLogger(__name__)

__all__ = ["MODEL_PICTURES", "ModelFacts", "model_card", "theirs", "write_card"]

#: Every picture that a card of a model may have drawn, by its path in the repository.
MODEL_PICTURES = _CURVE, _STRIP = "card/loss.png", "card/samples.png"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model_card(
    facts: ModelFacts,
    folder: str | os.PathLike[str],
    repo_id: str,
    metadata: Mapping[str, Any] | None = None,
    license: str | None = None,
    template: str | Path | None = None,
) -> Card:
    """The card of a model. The same facts and files give the same bytes, and no folder of this machine is in them.

    Args:
        facts: How it came to be.
        folder: Where its samples are. One that is not there is left out, and said through `logging`.
        repo_id: `"namespace/name"`, or a path, for the code that loads it.
        metadata: What stands in the YAML header already. Entries of a person stay, and lists grow; what follows from
            the facts (`base_model`, `base_model_relation`, `library_name`) replaces what is there.
        license: An identifier of the Hub's list, or the name or address of another. None: what the metadata say, or
            the facts, or `unknown`.
        template: A Jinja2 file of your own in place of `hub_cards/model.md`; it may use the names that are there.

    Returns:
        The card, with the curves of losses where there are any, and a strip of samples where the facts name none.
    """
    from .curves import loss_curve

    facts = facts.published()
    folder = Path(folder)
    missing = [path for path in facts.paths() if not (folder / path).is_file()]
    if missing:
        logger.warning("%s are not there, and the card does without: %s", folder, ", ".join(missing))
    there = [
        {end: path for end in ENDS_OF_A_SAMPLE if (path := sample.get(end)) and path not in missing}
        | {"caption": str(sample.get("caption") or "")}
        for sample in facts.samples
    ]
    samples = [sample for sample in there if len(sample) > 1]

    files: dict[str, bytes] = {}
    if curve := loss_curve(facts.losses, facts.metrics):
        files[_CURVE] = curve
    strip = facts.pictures if facts.pictures and facts.pictures not in missing else ""
    if not strip and (drawn := _strip(samples, folder)):
        files[_STRIP], strip = drawn, _STRIP

    own = entries(facts) | ({"widget": _widget(samples)} if _widget(samples) else {})
    kept = dict(metadata or {})
    if not facts.base_is_hub and not kept.get("base_model"):
        kept.pop("base_model_relation", None)
    absent = {name: own[name] for name in ("pipeline_tag", "tags") if name in own}
    ours = {name: value for name, value in own.items() if name not in absent}
    for name in ("datasets", "widget"):
        if name in ours:
            listed = kept.get(name) or []
            listed = listed if isinstance(listed, list) else [listed]
            ours[name] = ours[name] + [entry for entry in listed if entry not in ours[name]]
    unsaid = kept.get("license") in (None, "unknown")
    head = header(absent, ours, kept, license or (facts.license if unsaid else None))

    title = repo_id.rstrip("/").rsplit("/", 1)[-1]
    base = code(facts.base_model) if facts.base_model else "a model that is not named here"
    text = _render(
        template or "model.md",
        head,
        title=markdown(title),
        repo_id=repo_id,
        opening=_opening(facts, base),
        gallery=bool(own.get("widget")),
        code=facts.how_to_load.replace("{repo_id}", repo_id).replace("```", "").strip("\n"),
        base=base,
        unnamed=not facts.base_model,
        local_base=bool(facts.base_model) and not facts.base_is_hub and facts.base_model in facts.how_to_load,
        samples=[
            {"caption": markdown(s["caption"])} | {end: _link(s.get(end)) for end in ENDS_OF_A_SAMPLE} for s in samples
        ],
        beside=any("both" in sample for sample in samples),
        strip=quote(strip),
        origin=_origin(facts, base),
        curve=_CURVE if curve else "",
        curve_says=markdown(_curve_says(facts)),
        training=[(markdown(name), markdown(_said(value))) for name, value in facts.training.items()]
        + [("Computed with", ", ".join(markdown(f"{name} {v}") for name, v in facts.versions.items()))]
        * bool(facts.versions),
        **_measured(facts),
        chosen=_chosen(facts),
        adapter=facts.kind == "lora",
        licence=license_sentence(head, "these weights"),
    )
    return Card(text, files)


def entries(facts: ModelFacts) -> dict[str, Any]:
    """The entries of a card's header that follow from the facts: `widget` apart, which follows from files."""
    tags = ["hf_motive", "motion-attribution", "video", "motion", *(["lora"] if facts.kind == "lora" else [])]
    found: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": facts.pipeline_tag, "tags": tags}
    if facts.base_is_hub and _ID.fullmatch(facts.base_model):
        found["base_model"] = facts.base_model
        found["base_model_relation"] = "adapter" if facts.kind == "lora" else "finetune"
    if facts.curated_dataset and _ID.fullmatch(facts.curated_dataset):
        found["datasets"] = [facts.curated_dataset]
    return found


def theirs(metadata: Mapping[str, Any], earlier: ModelFacts | None) -> dict[str, Any]:
    """A card's entries without those that an earlier push wrote and nobody changed since."""
    left = dict(metadata)
    if earlier is None:
        return left
    earlier = earlier.published()
    said = entries(earlier) | {"widget": _widget(earlier.samples)}
    if earlier.license:
        said |= license_entries(earlier.license, {})
    for name, value in said.items():
        there = left.get(name)
        if there == value:
            left.pop(name)
        elif isinstance(there, list) and isinstance(value, list):
            left[name] = [entry for entry in there if entry not in value]
    return {name: value for name, value in left.items() if value not in (None, [])}


def write_card(
    folder: str | os.PathLike[str],
    repo_id: str | None = None,
    to: str | os.PathLike[str] | None = None,
    *,
    license: str | None = None,
) -> Path:
    """Render the card of a model's folder as files: README.md, its pictures, and the samples that it shows.

    Args:
        folder: With `model.json`, where a training ended.
        repo_id: What the code in the card loads. None: the folder's name.
        to: Where to; made if need be. None: into `folder`, beside the samples.
        license: As in `model_card`.

    Returns:
        The README.md.

    Raises:
        FileNotFoundError, ValueError: as `ModelFacts.load`.
    """
    import shutil

    folder = Path(folder)
    to = folder if to is None else Path(to)
    facts = ModelFacts.load(folder)
    card = model_card(facts, folder, repo_id or folder.resolve().name, license=license)
    for path, data in {"README.md": card.text.encode(), **card.files}.items():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_bytes(data)
    for path in facts.paths():
        if (folder / path).is_file() and (folder / path).resolve() != (to / path).resolve():
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, to / path)
    return to / "README.md"


# What the card says ----------------------------------------------------------------------------------------------


def _opening(facts: ModelFacts, base: str) -> str:
    chosen = _chosen(facts)
    what = f"A LoRA for {base}" if facts.kind == "lora" else f"{base[0].upper()}{base[1:]}, fine-tuned"
    corpus = f" of {code(corpus_name(facts.corpus))}" if facts.corpus else ""
    on = f" on {clips(facts.clips)}{corpus}" if facts.clips is not None else f" on clips{corpus}"
    trained = ", trained" if facts.kind == "lora" else ""
    total = f" out of {facts.clips_of:,}" if facts.clips_of is not None else ""
    how = f", chosen{total}" if chosen else ""
    sentence = f" {markdown(facts.selection)}" if facts.selection else ""
    return f"**{what}{trained}{on}{how}.**{sentence}"


def _chosen(facts: ModelFacts) -> bool:
    return bool(facts.selection)


def _unused(facts: ModelFacts) -> int:
    """How many clips could not be used, as far as is known: where none were chosen, all that are missing."""
    if facts.selection or facts.clips is None or facts.clips_of is None:
        return 0
    return max(0, facts.clips_of - facts.clips)


def _origin(facts: ModelFacts, base: str) -> list[tuple[str, str]]:
    parts = ", ".join(map(code, facts.components))
    kind = "LoRA of" if facts.kind == "lora" else "All weights of"
    of = f" of {facts.clips_of:,}" if facts.clips_of is not None else ""
    dataset = facts.curated_dataset
    linked = f"[{dataset}](https://huggingface.co/datasets/{dataset})" if dataset and _ID.fullmatch(dataset) else ""
    found = [
        ("Base model", f"[{facts.base_model}](https://huggingface.co/{facts.base_model})" if _linked(facts) else base),
        ("Pipeline", code(facts.pipeline_class)),
        ("Trained", f"{kind} {parts}" if parts else ""),
        ("Corpus", code(corpus_name(facts.corpus)) if facts.corpus else "not said"),
        ("Clips", "" if facts.clips is None else f"{facts.clips:,}{of}"),
        ("Could not be used", f"{_unused(facts):,}" if _unused(facts) else ""),
        ("Chosen", markdown(facts.selection) if facts.selection else "all were taken"),
        ("The chosen clips", linked),
        *((f"Scores: {markdown(name)}", code(_said(value))) for name, value in (facts.scores or {}).items() if value),
    ]
    return [(name, value) for name, value in found if value]


def _linked(facts: ModelFacts) -> bool:
    return facts.base_is_hub and _ID.fullmatch(facts.base_model) is not None


def _measured(facts: ModelFacts) -> dict[str, Any]:
    """First and last evaluation, name by name."""
    from .curves import measure_name

    names = dict.fromkeys(name for row in facts.metrics for name in row if name != "step")
    rows = [row for row in facts.metrics if isinstance(row.get("step"), (int, float))]
    if not rows or not names:
        return {"measured": []}
    first, last = min(rows, key=lambda row: row["step"]), max(rows, key=lambda row: row["step"])

    def step(row: Mapping[str, Any]) -> str:
        return "before" if row["step"] == 0 else f"step {row['step']:,}"

    return {
        "first_step": step(first),
        "last_step": step(last) if last is not first else "",
        "measured": [
            {
                "name": markdown(measure_name(name)),
                "first": _number(first, name),
                "last": _number(last, name) * (last is not first),
            }
            for name in names
        ],
    }


def _number(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else markdown(f"{value:.5g}" if isinstance(value, float) else value)


def _curve_says(facts: ModelFacts) -> str:
    numbers = [loss for _, loss in facts.losses if isinstance(loss, (int, float)) and loss == loss]
    some = max(1, len(numbers) // 10)
    if len(numbers) < 2:
        return "Loss of the evaluations"
    first, last = sum(numbers[:some]) / some, sum(numbers[-some:]) / some
    return f"Loss of the training over {int(facts.losses[-1][0])} steps: at first {first:.4g}, at last {last:.4g}"


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    return "none" if value is None else str(value)


def _link(path: str | None) -> str:
    return f"[mp4]({quote(path)})" if path else ""


def _widget(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the Hub shows in its gallery: a prompt, and the clip that the trained model made of it."""
    return [
        {"text": " ".join(str(sample.get("caption") or "").split()) or "-", "output": {"url": str(sample["after"])}}
        for sample in samples
        if sample.get("after")
    ]


def _strip(samples: list[dict[str, Any]], folder: Path) -> bytes | None:
    """Frames of the first few samples, before at the left and after at the right."""
    from . import pictures

    def of(end: str) -> list[pictures.Strip]:
        shown = ((str(folder / s[end]), _drawable(s["caption"], Path(s[end]).name), "") for s in some if end in s)
        return pictures.strips_of(shown)

    some = samples[:ENDS]
    columns = [("Before", of("before")), ("After", of("after"))]
    return pictures.filmstrip(columns) if any(strips for _, strips in columns) else None
