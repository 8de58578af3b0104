"""What the Hub says about the metadata of a card: the rules that are public, and stricter ones where nothing is.

Errors, which the Hub refuses: YAML that does not parse; a license outside its list; a language that is no lower-case
ISO 639 code; a base_model or datasets entry that can be no id; values of the wrong type. Warnings, which it accepts:
no metadata; a task outside its list. Sources: datasetcard.md, modelcard.md and repositories-licenses.md of hub-docs,
pipelines.ts of huggingface.js, and messages of the Hub that users have reported.

Not known to be the Hub's own, and errors here: a size category outside the list, an unnamed `other` license, a
base_model_relation outside the documented four or without a base_model, and the inner structure of `configs`,
`dataset_info`, `model-index` and `widget`. Not looked up: whether an id or a link exists.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml


def _words(text: str) -> list[str]:
    return text.split()


_LICENSES = _words("""
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
""")
_TASKS = _words("""
    text-classification token-classification table-question-answering question-answering zero-shot-classification
    translation summarization feature-extraction text-generation text2text-generation fill-mask sentence-similarity
    text-to-speech text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
    voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
    image-to-text image-to-image image-to-video unconditional-image-generation video-classification
    reinforcement-learning robotics tabular-classification tabular-regression tabular-to-text table-to-text
    multiple-choice text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text
    visual-question-answering document-question-answering zero-shot-image-classification graph-ml mask-generation
    zero-shot-object-detection text-to-3d image-to-3d image-feature-extraction video-text-to-text keypoint-detection
    visual-document-retrieval any-to-any video-to-video image-text-to-image image-text-to-video other
""")
# https://huggingface.co/docs/hub/model-cards#specifying-a-base-model
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_BLOCK = re.compile(r"^\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SPLIT = re.compile(r"\w+(\.\w+)*")


def header(content: str) -> tuple[dict[str, Any] | None, str]:
    """The metadata above a card's text, and what is wrong with it as YAML ("" where nothing is)."""
    block = _BLOCK.match(content)
    if block is None:
        return None, ""
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return None, f"bad YAML: {error}"
    if data is not None and not isinstance(data, dict):
        return None, "the metadata must be a mapping"
    return data, ""


def validate(content: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the card of a "dataset" or a "model"."""
    data, broken = header(content)
    if broken:
        return [broken], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = list(_common(data)) + list(_dataset(data) if kind == "dataset" else _model(data))
    key = "task_categories" if kind == "dataset" else "pipeline_tag"
    unknown = [task for task in _listed(data.get(key)) if task not in _TASKS]
    return errors, [f'The {key} "{task}" is not in the official list: {", ".join(_TASKS)}' for task in unknown]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


@functools.cache
def _resource(name: str) -> frozenset[str]:
    """A list that datasets ships of what the Hub knows, read without importing datasets."""
    spec = importlib.util.find_spec("datasets")
    assert spec is not None and spec.origin is not None
    return frozenset(json.loads((Path(spec.origin).parent / "utils/resources" / name).read_text("utf-8")))


def _strings(
    data: dict[str, Any], key: str, single: bool = True, check: Callable[[str], str] = lambda value: ""
) -> Iterator[str]:
    """Complaints about an entry: strings, or where `single` one string; `check` says what is wrong with each."""
    value = data.get(key)
    if value is None:
        return
    if not isinstance(value, list) and not (single and isinstance(value, str)):
        yield f'"{key}" must be {"a string or " if single else ""}an array of strings'
        return
    for position, item in enumerate(_listed(value)):
        name = f'"{key}[{position}]"' if isinstance(value, list) else f'"{key}"'
        wrong = check(item) if isinstance(item, str) else "must be a string"
        if wrong:
            yield f"{name} {wrong}"


def _string(data: dict[str, Any], *keys: str) -> Iterator[str]:
    yield from (f'"{key}" must be a string' for key in keys if not isinstance(data.get(key, ""), str))


def _language(value: str) -> str:
    if value != value.lower():
        return "must only contain lowercase characters"
    if value in ("multilingual", "code") or re.fullmatch("[a-z]{3}", value) or value in _resource("languages.json"):
        return ""
    return f'with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code (two/three letters)'


def _id(what: str) -> Callable[[str], str]:
    wrong = f"is not valid. Use a {what} id from https://hf.co/{what}s."
    return lambda value: "" if _ID.fullmatch(value) else f'with value "{value}" {wrong}'


def _common(data: dict[str, Any]) -> Iterator[str]:
    known = f"must be one of [{', '.join(_LICENSES)}]"
    yield from _strings(data, "license", check=lambda value: "" if value in _LICENSES else known)
    yield from _string(data, "license_name", "license_link", "pretty_name")
    if "other" in _listed(data.get("license")):
        if not data.get("license_name"):
            yield 'a license "other" needs a "license_name"'
        elif not re.fullmatch(r"[a-z0-9.-]+", str(data["license_name"])):
            yield '"license_name" must be an id, such as my-license-1.0'
    elif data.get("license_name"):
        yield '"license_name" goes with the license "other" alone'
    yield from _strings(data, "language", check=_language)
    yield from _strings(data, "tags", single=False)
    yield from _strings(data, "base_model", check=_id("model"))
    yield from _strings(data, "datasets", check=_id("dataset"))


def _dataset(data: dict[str, Any]) -> Iterator[str]:
    sizes = _resource("size_categories.json")
    wrong = f"must be one of [{', '.join(sorted(sizes))}]"
    yield from _strings(data, "size_categories", check=lambda value: "" if value in sizes else wrong)
    for key in ("task_categories", "task_ids", "source_datasets", "annotations_creators", "language_creators"):
        yield from _strings(data, key)
    yield from _configs(data.get("configs"))
    for about in _listed(data.get("dataset_info")):
        if isinstance(about, dict):
            yield from _dataset_info(about)
        else:
            yield '"dataset_info" must be a mapping or an array of mappings'


def _configs(configs: Any) -> Iterator[str]:
    if configs is None:
        return
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        yield '"configs" must be an array of mappings'
        return
    names = [config.get("config_name") for config in configs]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        yield '"configs" must each have a "config_name" of their own'
    if sum(config.get("default") is True for config in configs) > 1:
        yield '"configs" may have one default'
    for config in configs:
        for entry in _listed(config.get("data_files")):
            if isinstance(entry, str):
                continue
            paths = _listed(entry.get("path")) if isinstance(entry, dict) else []
            split = entry.get("split") if isinstance(entry, dict) else None
            if not paths or not all(isinstance(path, str) for path in paths):
                yield '"data_files" must be paths, or mappings with a "path"'
            if not _SPLIT.fullmatch(str(split)):
                yield f'"data_files" names the split {split!r}: it must match {_SPLIT.pattern}'


def _dataset_info(about: dict[str, Any]) -> Iterator[str]:
    yield from _string(about, "config_name")
    for key in ("download_size", "dataset_size"):
        if not isinstance(about.get(key, 0), int):
            yield f'"dataset_info.{key}" must be a number'
    for key in ("features", "splits"):
        entries = about.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
            yield f'"dataset_info.{key}" must be an array of mappings with a "name"'
        elif key == "features":
            yield from (f"the feature {entry['name']} has no type" for entry in entries if len(entry) < 2)
        elif not all(isinstance(e.get(count, 0), int) for e in entries for count in ("num_bytes", "num_examples")):
            yield '"num_bytes" and "num_examples" of a split must be numbers'


def _model(data: dict[str, Any]) -> Iterator[str]:
    yield from _string(data, "library_name", "pipeline_tag")
    yield from _strings(data, "metrics")
    relation = data.get("base_model_relation")
    if relation not in (None, *_RELATIONS):
        yield f'"base_model_relation" must be one of [{", ".join(_RELATIONS)}]'
    elif relation and not data.get("base_model"):
        yield '"base_model_relation" goes with a "base_model"'
    yield from _widget(data.get("widget"))
    for entry in _listed(data.get("model-index")):
        if not isinstance(entry, dict) or not {"name", "results"} <= set(entry):
            yield '"model-index" must be an array of mappings with "name" and "results"'
            continue
        for result in entry["results"]:
            if not {"type", "name"} <= set(result.get("dataset", {})) or "type" not in result.get("task", {}):
                yield f'a result of {entry["name"]} has no "task" with "type", or no "dataset" with "type" and "name"'
            if not result.get("metrics") or not all({"type", "value"} <= set(metric) for metric in result["metrics"]):
                yield f'a result of {entry["name"]} has no metrics with "type" and "value"'


def _widget(widget: Any) -> Iterator[str]:
    """Examples of what a model gives: a prompt, and where its picture or clip lies in the repository."""
    if widget is None:
        return
    if not isinstance(widget, list) or not all(isinstance(example, dict) for example in widget):
        yield '"widget" must be an array of mappings'
        return
    for place, example in enumerate(widget):
        if not isinstance(example.get("text", ""), str):
            yield f'"widget[{place}].text" must be a string'
        output = example.get("output", {"url": "-"})
        if not isinstance(output, dict) or not (isinstance(output.get("url"), str) or "text" in output):
            yield f'"widget[{place}].output" must be a mapping with a "url"'
