"""What is compared and on what: names and places, prompts, weights put back, clips from the same noise."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig

from hf_motive.evaluation import EvaluateArguments
from hf_motive.evaluation.candidates import OPTIONS, resolve
from hf_motive.evaluation.fingerprints import Fingerprints
from hf_motive.evaluation.generate import clips_of, generate, settings_of, settle
from hf_motive.evaluation.prompts import load_prompts
from hf_motive.evaluation.specs import Spec, parse_specs
from hf_motive.training.weights import TrainedWeights
from tests.clips import write_corpus
from tests.families import wan, wan_i2v

SHAPE = {"num_frames": wan.NUM_FRAMES, "height": wan.HEIGHT, "width": wan.WIDTH, "steps": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A pipeline, and what trainings of it leave: all weights, and a LoRA; with weights that are not its own."""
    folder = tmp_path_factory.mktemp("models")
    wan.build().save_pretrained(folder / "pipeline")
    wan.build(seed=9).save_pretrained(folder / "other")
    for name, config in (("full", None), ("lora", LoraConfig(r=2, lora_alpha=2))):
        weights = TrainedWeights(wan.build(), peft_config=config)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(5)
            for parameter in weights.module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        weights.save(folder / name)
        torch.save(weights.pipe.transformer.state_dict(), folder / f"{name}.state")
    return folder


# What a user writes -----------------------------------------------------------------------------------------------


def test_names_places_and_options():
    told = ["base", "tuned=runs/a=b,guidance=6,steps=20", {"best": {"place": "a,b", "scale": 0.5}}, {"plain": "p"}]
    assert parse_specs(told, "candidate", OPTIONS) == [
        Spec("base", None, {}),
        Spec("tuned", "runs/a=b", {"guidance": 6, "steps": 20}),
        Spec("best", "a,b", {"scale": 0.5}),
        Spec("plain", "p", {}),
    ]
    assert parse_specs({"base": None, "x": {"guidance": 2}}, "candidate") == [
        Spec("base", None, {}),
        Spec("x", None, {"guidance": 2}),
    ]
    assert parse_specs([{"name": "m", "network": "a/b"}], "metric") == [Spec("m", None, {"network": "a/b"})]
    assert parse_specs("base", "candidate") == [Spec("base", None, {})]


@pytest.mark.parametrize(
    "told, message",
    [
        (["a", "a=b"], "candidate a is given twice: call one of them otherwise"),
        (["a,strength=1"], "candidate a has no option 'strength'; there is guidance, steps, scale, pipeline"),
        (["a=x,y"], "'y' in 'a=x,y' is no option=value"),
        (["a="], "names no place behind '='"),
        (["../a"], "'../a' is no name for a candidate"),
        ([3], "a candidate is a text such as name=place, or a mapping; got 3"),
        ([{"a": 3}], "candidate a must be a place or a mapping of its options, got 3"),
        (3, "candidates must be a list or a mapping by name, got 3"),
    ],
)
def test_what_is_no_name_or_place_is_said(told, message):
    with pytest.raises(ValueError, match=message):
        parse_specs(told, "candidate", OPTIONS)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"candidates": ["a"], "against": "b"}, "--against b is none of the candidates; they are a"),
        ({"candidates": ["a,guidance=much"]}, "candidate a: guidance='much' is no number"),
        ({"metrics": ["dreaminess"]}, "there is no metric 'dreaminess'; there are "),
        ({"metrics": ["warp_smoothness=x"]}, "options stand behind a comma, warp_smoothness,network=x"),
        ({"metrics": ["flow_statistics_distance"]}, "compares with real clips: give them by --references"),
        ({"preference": "dynamic_degree"}, "--preference dynamic_degree: pairs are judged by a metric of single"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"level": 95}, "--level lies between 0 and 1, got 95"),
        ({"call_kwargs": "x"}, "call_kwargs must be JSON"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        EvaluateArguments(**wrong)


def test_prompts_of_every_kind(tmp_path):
    (tmp_path / "p.txt").write_text("a ball falls\n\n a box rolls \n")
    lines = load_prompts(tmp_path / "p.txt")
    assert [(p.text, p.group) for p in lines] == [("a ball falls", None), ("a box rolls", None)]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a box rolls", "group": "roll"}\n{"prompt": "a star spins"}\n')
    table = load_prompts(tmp_path / "p.jsonl")
    assert [(p.text, p.group) for p in table] == [("a box rolls", "roll"), ("a star spins", None)]
    write_corpus(tmp_path / "clips", range(4), frames=3)
    clips = load_prompts(tmp_path / "clips", group_column="kind")
    assert [p.group for p in clips] == ["left", "right"] * 2
    assert len({p.key for p in clips}) == 4  # two captions, but four clips to start from
    assert [p.key for p in load_prompts(tmp_path / "clips", limit=2)] == [clips[0].key, clips[2].key]
    sorted_by_kind = "".join(f'{{"prompt": "{k} {i}", "group": "{k}"}}\n' for k in "abc" for i in range(3))
    (tmp_path / "many.jsonl").write_text(sorted_by_kind)
    assert [p.text for p in load_prompts(tmp_path / "many.jsonl", limit=4)] == ["a 0", "a 1", "b 0", "c 0"]

    seeds = [lines[1].noise_seed(0, repeat) for repeat in range(3)]
    assert seeds == [table[0].noise_seed(0, repeat) for repeat in range(3)]  # whatever stands beside it
    assert len({*seeds, *(lines[1].noise_seed(1, r) for r in range(3)), lines[0].noise_seed(0, 0)}) == 7

    (tmp_path / "marked.txt").write_text("a ball falls\n", encoding="utf-8-sig")  # as Windows' editor writes it
    assert load_prompts(tmp_path / "marked.txt") == lines[:1]

    (tmp_path / "twice.txt").write_text("a\na\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, message in {
        "empty.jsonl": "empty.jsonl holds no prompt",
        "twice.txt": "holds 'a' twice: several clips of a prompt come from --seeds",
        "p.csv": "p.csv does not exist",
        "none.txt": "none.txt does not exist: give a .txt with a prompt a line",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_prompts(tmp_path / name)
    with pytest.raises(ValueError, match=r"has no column words; its columns are prompt, group\. Name that"):
        load_prompts(tmp_path / "p.jsonl", prompt_column="words")


# What lies at a place ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_trained_weights_are_put_back_bit_for_bit(models, kind):
    candidate = resolve(Spec(kind, str(models / kind), {}), str(models / "pipeline"))
    assert candidate.kind == "trained"
    trained = torch.load(models / f"{kind}.state")
    found = candidate.load("float32", "cpu").transformer.state_dict()
    ours = sorted((value.flatten().double() @ torch.arange(value.numel()).double()).item() for value in found.values())
    theirs = sorted((v.flatten().double() @ torch.arange(v.numel()).double()).item() for v in trained.values())
    assert ours == theirs and len(ours) == len(trained)


def test_a_lora_of_no_strength_is_its_base(models):
    place = str(models / "lora" / "pytorch_lora_weights.safetensors")
    x = {"hidden_states": torch.randn(1, *wan.LATENTS), "timestep": torch.tensor([500])}
    x["encoder_hidden_states"] = torch.randn(1, 512, wan.TEXT_DIM)
    out = {}
    for name, options in {"base": None, "whole": {}, "half": {"scale": 0.5}, "none": {"scale": 0.0}}.items():
        spec = Spec(name, None if options is None else place, options or {})
        pipe = resolve(spec, str(models / "pipeline")).load("float32", "cpu")
        with torch.no_grad():
            out[name] = pipe.transformer(**x, return_dict=False)[0]
    assert torch.equal(out["none"], out["base"])
    gaps = {name: (out[name] - out["base"]).norm().item() for name in ("half", "whole")}
    assert 0 < gaps["half"] < gaps["whole"]


def test_trained_weights_of_the_hub_are_found_where_its_client_keeps_them(models, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "models--me--tuned", "0123456789" * 4
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = shutil.copytree(models / "lora", repo / "snapshots" / commit)
    candidate = resolve(Spec("tuned", "me/tuned", {}), str(models / "pipeline"))
    assert (candidate.kind, candidate.place) == ("trained", str(snapshot))
    assert candidate.weights(Fingerprints(tmp_path / "out"))["weights"] == commit
    assert any("lora" in name for name in candidate.load("float32", "cpu").transformer.state_dict())
    (snapshot / "model.json").write_text(json.dumps({"base_model": "me/base", "base_is_hub": True}))
    with pytest.raises(FileNotFoundError, match="me/base is no folder here, and the Hub does not give it"):
        resolve(Spec("tuned", "me/tuned", {}), None)  # which base it is stands in its facts


def test_what_cannot_be_compared_is_said(models, tmp_path):
    def fails(place, *, pipeline=str(models / "pipeline"), load=False, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            candidate = resolve(Spec("it", None if place is None else str(place), options), pipeline)
            if load:
                candidate.load("float32", "cpu")
        return str(error.value)

    full = models / "full"
    assert "was trained from another transformer than that of" in fails(
        full, pipeline=str(models / "other"), load=True
    )
    assert f"it={full},pipeline=BASE" in fails(full, pipeline=str(models / "other"), load=True)
    assert "does not say for which: give it by --pipeline, or as it=" in fails(full, pipeline=None)
    assert "has no LoRA that scale=0.5" in fails(full, load=True, scale=0.5)
    assert "is a whole pipeline: scale= is the strength of a LoRA" in fails(models / "pipeline", scale=0.5)
    assert "candidate it has no place" in fails(None, pipeline=None)
    assert "does not exist: a candidate is a pipeline's folder" in fails(tmp_path / "nowhere")
    assert "holds no pipeline (model_index.json), no end of a training (weights.json)" in fails(tmp_path)
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-100").mkdir()
    assert "has not ended: end it, or take a checkpoint, " in (said := fails(tmp_path)) and said.endswith("-100")
    assert "is no whole pipeline, which it needs under it" in fails(full, pipeline=str(models / "lora"))
    assert "the Hub does not give it" in fails("nobody/nothing")


def test_a_fingerprint_follows_the_weights_and_nothing_else(models, tmp_path):
    folder = shutil.copytree(models / "full", tmp_path / "full")
    first = Fingerprints(tmp_path).of(str(folder))
    (folder / "README.md").write_text("a card")
    (folder / "samples").mkdir()
    (folder / "samples" / "samples.json").write_text("[]")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    os.utime(weights)  # written again, the same
    assert Fingerprints(tmp_path).of(str(folder)) == first
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert Fingerprints(tmp_path).of(str(folder)) != first


# Clips ------------------------------------------------------------------------------------------------------------


def run(arguments: EvaluateArguments) -> dict[str, list]:
    """Generate alone, on this process."""
    prompts = load_prompts(arguments.prompts, group_column=arguments.group_column, limit=arguments.limit)
    candidates = [resolve(spec, arguments.pipeline) for spec in arguments.candidate_specs()]
    clips = {candidate: clips_of(candidate.name, prompts, arguments) for candidate in candidates}
    for candidate in candidates:
        settings = settings_of(candidate, candidate.weights(Fingerprints(arguments.output)), arguments, "float32")
        settle(Path(arguments.output) / "videos" / candidate.name, settings, overwrite=arguments.overwrite)
    generate(clips, arguments, "float32", PartialState(cpu=True))
    return {candidate.name: of_one for candidate, of_one in clips.items()}


def test_candidates_start_from_the_same_noise_and_clips_are_found_again(models, tmp_path):
    (tmp_path / "p.txt").write_text("a ball falls\na box rolls\n")
    told = {"pipeline": str(models / "pipeline"), "prompts": str(tmp_path / "p.txt"), "output": str(tmp_path / "out")}
    candidates = ["base", "again", f"lora={models / 'lora'}", f"full={models / 'full'}", "strong,guidance=9"]
    found = run(EvaluateArguments(candidates=candidates, **told, **SHAPE, seeds=2))
    data = {name: [clip.file.read_bytes() for clip in clips] for name, clips in found.items()}
    assert data["base"] == data["again"]  # the same model and the same noise: the same files
    assert len(set(data["base"])) == 4  # of every prompt and seed another
    for name in ("lora", "full", "strong"):
        assert not {*data["base"]} & {*data[name]}

    times = {clip.file: clip.file.stat().st_mtime_ns for clips in found.values() for clip in clips}
    (tmp_path / "p.txt").write_text("a star spins\na box rolls\na ball falls\n")
    more = run(EvaluateArguments(candidates=["base"], **told, **SHAPE, seeds=2))["base"]
    assert len(more) == 6 and {clip.file for clip in found["base"]} < {clip.file for clip in more}
    assert all(clip.file.stat().st_mtime_ns == times.get(clip.file, clip.file.stat().st_mtime_ns) for clip in more)

    changed = {**SHAPE, "steps": 3}
    with pytest.raises(ValueError, match=r"made otherwise: steps was 2 and is 3\. Give .* --overwrite true"):
        run(EvaluateArguments(candidates=["base"], **told, **changed, seeds=2))
    run(EvaluateArguments(candidates=["base"], **told, **changed, overwrite=True, limit=1))
    assert len(list((tmp_path / "out" / "videos" / "base").glob("*.mp4"))) == 1
    assert len(list((tmp_path / "out" / "videos" / "again").glob("*.mp4"))) == 4


def test_a_conditioned_pipeline_starts_from_the_prompt_s_clip_and_a_bad_one_costs_its_row(tmp_path):
    wan_i2v.build().save_pretrained(tmp_path / "pipeline")
    rows = write_corpus(tmp_path / "clips", range(3))
    (tmp_path / "clips" / rows[1]["file_name"]).write_text("not a video")
    told = {"pipeline": str(tmp_path / "pipeline"), "prompts": str(tmp_path / "clips"), **SHAPE}
    clips = run(EvaluateArguments(**told, output=str(tmp_path / "out")))["base"]
    assert [clip.file.exists() for clip in clips] == [True, False, True]
    assert "001.mp4" in clips[1].failed.read_text()
    assert clips[0].prompt.text == clips[2].prompt.text and clips[0].seed != clips[2].seed

    (tmp_path / "p.txt").write_text("a ball falls\n")  # nothing to start from
    told["prompts"] = str(tmp_path / "p.txt")
    with pytest.raises(ValueError, match=r"could generate none of its 1 clips: .*--retry_failed true"):
        run(EvaluateArguments(**told, output=str(tmp_path / "none")))


def test_settings_are_json(models, tmp_path):
    candidate = resolve(Spec("full", str(models / "full"), {}), str(models / "pipeline"))
    arguments = EvaluateArguments(candidates=["full=x"], call_kwargs='{"max_sequence_length": 512}')
    said = settings_of(candidate, candidate.weights(Fingerprints(tmp_path)), arguments, "float32")
    settle(tmp_path / "full", said, overwrite=False)
    settle(tmp_path / "full", said, overwrite=False)
    kept = json.loads((tmp_path / "full" / "settings.json").read_text())
    assert kept["base"] != kept["weights"] and kept["call_kwargs"] == {"max_sequence_length": 512}
