"""What is trained of a pipeline, and what diffusers makes of it again: the same video, bit for bit."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from hf_motive.pipelines import PipelineStep, digest
from hf_motive.pipelines.step import find_denoisers
from hf_motive.training import whole
from hf_motive.training.adapters import lora_targets
from hf_motive.training.denoisers import Denoisers
from hf_motive.training.weights import TrainedWeights
from tests.families import hunyuan15, modelscope, wan, wan22
from tests.families.common import Variant, example_pixels
from tests.families.registry import variants


def lora(**settings: Any) -> LoraConfig:
    """Alpha is not the rank: a loader that loses it generates something else."""
    return LoraConfig(**{"r": 2, "lora_alpha": 6, "init_lora_weights": False, **settings})


def moved(trained: TrainedWeights, seed: int = 0) -> TrainedWeights:
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained.module.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return trained


def generated(pipe: Any, variant: Variant) -> Tensor:
    size = {"num_frames": variant.num_frames, "height": variant.height, "width": variant.width}
    more = {"output": "videos"} if hasattr(pipe, "load_components") else {"return_dict": False}
    found = pipe(
        prompt="a red ball",
        num_inference_steps=3,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
        **size,
        **more,
    )
    return torch.as_tensor(found[0])


def same_state(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# ------------------------------------------------------------------------------------------------ loaded by diffusers


@pytest.mark.parametrize(
    "name, config, files",
    [
        ("wan2.1", None, {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}),
        ("wan2.1", lora(), {"pytorch_lora_weights.safetensors"}),
        ("wan2.1-modular", None, {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}),
        ("wan2.1-modular", lora(), {"pytorch_lora_weights.safetensors"}),
        (
            "wan2.2-a14b",
            lora(use_dora=True),
            {"pytorch_lora_weights.safetensors", "pytorch_lora_weights_transformer_2.safetensors"},
        ),
        ("hunyuanvideo-1.5", lora(), {"transformer/pytorch_lora_weights.safetensors"}),  # by the model itself
        ("modelscope", lora(), {"unet/adapter_model.safetensors", "unet/adapter_config.json"}),  # by peft
    ],
    ids=["whole", "lora", "whole-modular", "lora-modular", "two-experts", "model-loader", "peft-loader"],
)
def test_the_lines_load_it_back(name, config, files, tmp_path):
    variant = variants()[name]
    pipe = variant.build()
    pipe.save_pretrained(str(tmp_path / "base"))
    before = generated(pipe, variant)
    trained = moved(TrainedWeights(pipe, peft_config=config))
    trained.save(tmp_path / "kept")
    written = {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert written == files | {"weights.json"}
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "kept").rglob("*.json"))

    lines: dict[str, Any] = {}
    exec(trained.how_to_load(str(tmp_path / "kept"), str(tmp_path / "base")), lines)
    lines["pipe"].set_progress_bar_config(disable=True)
    expected = generated(pipe, variant)
    assert torch.equal(generated(lines["pipe"], variant), expected)
    assert not torch.equal(before, expected), "what was trained makes no difference"


def test_the_lines_name_a_precision_and_a_place():
    lines = TrainedWeights(wan.build(torch.bfloat16)).how_to_load("{repo_id}", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert lines.splitlines() == [
        "import torch",
        "from diffusers import WanPipeline, WanTransformer3DModel",
        "",
        'transformer = WanTransformer3DModel.from_pretrained("{repo_id}", subfolder="transformer", '
        "torch_dtype=torch.bfloat16)",
        'pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", transformer=transformer, '
        "torch_dtype=torch.bfloat16)",
    ]
    second = TrainedWeights(wan22.build(), denoiser="transformer_2", peft_config=lora())
    assert second.how_to_load("a/b", "c/d").splitlines()[-1] == (
        'pipe.load_lora_weights("a/b", weight_name="pytorch_lora_weights_transformer_2.safetensors", '
        "load_into_transformer_2=True)"
    )


@pytest.mark.parametrize("config", [None, lora()], ids=["whole", "lora"])
@pytest.mark.parametrize("name", ["wan2.1", "wan2.1-modular"])
def test_the_lines_keep_the_precision_of_each_part(name, config, tmp_path):
    pipe = variants()[name].build()
    pipe.to(torch.bfloat16)
    pipe.save_pretrained(str(tmp_path / "base"))
    pipe.vae.to(torch.float32)
    trained = TrainedWeights(pipe, peft_config=config)
    code = trained.how_to_load(str(tmp_path / "kept"), str(tmp_path / "base"))
    assert 'torch_dtype={"default": torch.bfloat16, "vae": torch.float32}' in code
    trained.save(tmp_path / "kept")
    lines: dict[str, Any] = {}
    exec(code, lines)
    dtypes = {part: getattr(lines["pipe"], part).dtype for part in ("vae", "text_encoder", "transformer")}
    assert dtypes == {"vae": torch.float32, "text_encoder": torch.bfloat16, "transformer": torch.bfloat16}

    pipe = wan22.build(torch.bfloat16)
    pipe.transformer_2.to(torch.float32)
    code = TrainedWeights(pipe, peft_config=config).how_to_load("a/b", "c/d")
    if config is None:
        assert 'transformer = WanTransformer3DModel.from_pretrained("a/b", subfolder="transformer", torch' in code
        assert 'WanTransformer3DModel.from_pretrained("a/b", subfolder="transformer_2")' in code
    else:
        assert '("c/d", torch_dtype={"default": torch.bfloat16, "transformer_2": torch.float32})' in code


def test_the_lines_of_a_pipeline_without_a_name():
    lines = TrainedWeights(wan.build(), peft_config=lora()).how_to_load("a/b", "")
    assert 'WanPipeline.from_pretrained("PUT THE BASE MODEL HERE")' in lines


# ----------------------------------------------------------------------------------------------------- what is trained


def test_all_else_is_fixed():
    pipe = wan22.build()
    trained = TrainedWeights(pipe, denoiser="transformer_2")
    assert trained.names == ("transformer_2",) and trained.kind == "full"
    trainable = {name for name, part in pipe.components.items() if isinstance(part, nn.Module) and _trains(part)}
    assert trainable == {"transformer_2"}
    assert trained.count == sum(parameter.numel() for parameter in pipe.transformer_2.parameters())
    assert TrainedWeights(wan22.build()).names == ("transformer", "transformer_2")


def test_half_precision(caplog):
    pipe = wan.build(torch.bfloat16)
    with caplog.at_level(logging.INFO, "hf_motive"):
        TrainedWeights(pipe)
    assert "bfloat16, small changes of a weight are lost" in caplog.text
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in pipe.text_encoder.parameters()} == {torch.bfloat16}

    pipe, config = wan.build(torch.bfloat16), lora(target_modules="all-linear")
    trained = TrainedWeights(pipe, peft_config=config)
    found = {(parameter.requires_grad, parameter.dtype) for parameter in pipe.transformer.parameters()}
    assert (True, torch.float32) in found and {dtype for grad, dtype in found if grad} == {torch.float32}
    assert (False, torch.bfloat16) in found and trained.kind == "lora"
    assert config.target_modules == "all-linear", "the user's own configuration is left as it was"


def test_lora_targets_of_every_denoiser():
    seen = set()
    for variant in variants().values():
        if variant.refused or variant.pipeline in seen:
            continue
        seen.add(variant.pipeline)
        if (kind := variant.build.__module__, variant.denoisers) in seen:
            continue
        seen.add(kind)
        for denoiser in find_denoisers(variant.build()).values():
            modules = dict(denoiser.named_modules())
            targets = lora_targets(denoiser)
            matched = [name for name in modules if any(name == t or name.endswith(f".{t}") for t in targets)]
            assert matched and {isinstance(modules[name], nn.Linear) for name in matched} == {True}, variant.name
            assert len(targets) <= 16, (variant.name, targets)
            outside = [name for name in matched if ".ff" in name or "time_emb" in name]
            assert not outside, (variant.name, outside)


def test_short_names_of_targets():
    assert lora_targets(wan.build().transformer) == ["to_k", "to_out.0", "to_q", "to_v"]
    plain = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert lora_targets(plain) == ["0", "1.0"]
    with pytest.raises(ValueError, match="no linear layer.*in full"):
        lora_targets(nn.Conv2d(1, 1, 1))


# ----------------------------------------------------------------------------------------------------------- refusals


def test_an_unknown_denoiser():
    with pytest.raises(ValueError, match="no denoiser 'unet'; it has transformer"):
        TrainedWeights(wan.build(), denoiser="unet")


@pytest.mark.parametrize(
    "config, message",
    [
        (lora(target_modules=["query"]), "query.*does not fit transformer.*to_k, to_out.0"),
        (lora(target_modules=["rope"]), "does not fit"),
        (lora(modules_to_save=["proj_out"]), "modules_to_save=.*in full"),
        (lora(bias="lora_only"), "bias='lora_only'"),
        (lora(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
    ],
)
def test_a_lora_that_does_not_serve(config, message):
    pipe = wan.build()
    with pytest.raises(ValueError, match=message):
        TrainedWeights(pipe, peft_config=config)
    assert same_state(pipe.transformer, wan.build().transformer)
    assert TrainedWeights(pipe, peft_config=lora()).count > 0, "the same pipeline, another attempt"


def test_an_adapter_that_is_there_already():
    for page in (wan, modelscope):
        pipe = page.build()
        (name,) = TrainedWeights(pipe, peft_config=lora()).names
        with pytest.raises(ValueError, match=f"adapter already.*pipe.{name}.fuse_lora"):
            TrainedWeights(pipe)
    pipe = wan.build()
    TrainedWeights(pipe, peft_config=lora())
    pipe.transformer.fuse_lora()
    pipe.transformer.unload_lora()
    assert TrainedWeights(pipe).kind == "full"


def test_quantised_weights():
    pipe = wan.build()
    quantize_(pipe.transformer, Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="quantised.*peft_config=LoraConfig"):
        TrainedWeights(pipe)
    assert TrainedWeights(pipe, peft_config=lora()).count > 0


# ------------------------------------------------------------------------------------------------------ saved and read


@pytest.mark.parametrize("config", [None, lora(rank_pattern={"to_q": 4})], ids=["whole", "lora"])
def test_read_back(config, tmp_path):
    trained = moved(TrainedWeights(wan22.build(), peft_config=config))
    trained.save(tmp_path)
    other = TrainedWeights(wan22.build(), peft_config=config)
    other.check(tmp_path)
    assert not same_state(trained.module, other.module)
    other.load(tmp_path)
    assert same_state(trained.module, other.module)

    gathered = {key: 2 * value for key, value in trained.module.state_dict().items()}
    trained.save(tmp_path, state_dict=gathered)  # over what is there
    other.load(tmp_path)
    trainable = {name for name, parameter in other.module.named_parameters() if parameter.requires_grad}
    assert trainable and all(torch.equal(other.module.state_dict()[name], gathered[name]) for name in trainable)
    with pytest.raises(ValueError, match="state_dict lacks .* of transformer, such as transformer.*gathered"):
        trained.save(tmp_path, state_dict={f"module.{key}": value for key, value in gathered.items()})
    other.check(tmp_path)  # and what was there is whole


def files_in(folder: Any) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_another_training_left_in_the_folder_goes(tmp_path):
    first, second = "pytorch_lora_weights.safetensors", "pytorch_lora_weights_transformer_2.safetensors"
    base = wan22.build()
    base.save_pretrained(str(tmp_path))
    (tmp_path / "model_index.json").unlink()
    theirs = files_in(tmp_path) - {f"transformer{end}" for end in ("", "_2")}
    theirs = {path for path in theirs if not path.startswith("transformer")} | {"transformer/notes.txt", "mine.pt"}
    for path in ("transformer/notes.txt", "mine.pt", "pytorch_lora_weights_mine.safetensors"):
        (tmp_path / path).write_bytes(b"theirs")
    theirs.add("pytorch_lora_weights_mine.safetensors")
    TrainedWeights(wan22.build()).save(tmp_path)
    for index in ("model_index.json", "modular_model_index.json"):  # as a trainer that saves all does, after that
        (tmp_path / index).write_text("{}")
    TrainedWeights(wan22.build(), peft_config=lora()).save(tmp_path)
    assert files_in(tmp_path) == theirs | {first, second, "weights.json"}
    TrainedWeights(wan22.build(), denoiser="transformer_2", peft_config=lora()).save(tmp_path)
    assert files_in(tmp_path) == theirs | {second, "weights.json"}
    TrainedWeights(modelscope.build(), peft_config=lora()).save(tmp_path)
    adapter = {"unet/adapter_model.safetensors", "unet/adapter_config.json"}
    assert files_in(tmp_path) == theirs | adapter | {"weights.json"}
    TrainedWeights(modelscope.build()).save(tmp_path)
    whole_unet = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    assert files_in(tmp_path) == theirs | whole_unet | {"weights.json"}


def test_an_adapter_of_another_loader_goes_too(tmp_path):
    beside = tmp_path / "transformer" / "pytorch_lora_weights.safetensors"
    TrainedWeights(wan.build(), peft_config=lora()).save(tmp_path)
    beside.parent.mkdir()
    beside.write_bytes(b"theirs")
    TrainedWeights(wan22.build(), denoiser="transformer_2", peft_config=lora()).save(tmp_path)
    assert beside.read_bytes() == b"theirs"
    TrainedWeights(wan.build(), peft_config=lora()).save(tmp_path)
    TrainedWeights(hunyuan15.build(), peft_config=lora()).save(tmp_path)
    assert files_in(tmp_path) == {"transformer/pytorch_lora_weights.safetensors", "weights.json"}


@pytest.mark.parametrize("config", [None, lora()], ids=["whole", "lora"])
def test_a_pipeline_of_a_person_in_the_folder_stays(config, tmp_path):
    wan.build().save_pretrained(str(tmp_path))
    before = files_in(tmp_path)
    trained = TrainedWeights(wan.build(), peft_config=config)
    for _ in range(3):
        trained.save(tmp_path)
        assert before <= files_in(tmp_path)
    WanPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("where", ["transformer", "pipeline"])
def test_a_model_that_is_trained_on_in_its_own_folder_stays(where, tmp_path, monkeypatch):
    """The output of one training is the base of the next, which is told to go to the same place."""
    wan.build().save_pretrained(str(tmp_path / "base"))
    TrainedWeights(wan.build()).save(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    if where == "pipeline":
        wan.build().save_pretrained("run")
        pipe = WanPipeline.from_pretrained("run")
    else:
        part = type(wan.build().transformer).from_pretrained("run", subfolder="transformer")
        pipe = WanPipeline.from_pretrained("base", transformer=part)
    before = files_in(tmp_path / "run")
    trained = TrainedWeights(pipe, peft_config=lora())
    monkeypatch.chdir("/")
    for _ in range(2):
        trained.save(tmp_path / "run")
        assert files_in(tmp_path / "run") == before | {"pytorch_lora_weights.safetensors"}


def test_many_files_then_one(tmp_path, monkeypatch):
    wan.build().save_pretrained(tmp_path / "base")
    trained = moved(TrainedWeights(WanPipeline.from_pretrained(tmp_path / "base")))
    with monkeypatch.context() as patch:
        patch.setattr(whole, "MAX_SHARD", "40KB")
        trained.save(tmp_path)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    other = TrainedWeights(wan.build())
    other.load(tmp_path)
    assert same_state(trained.module, other.module)
    assert same_state(
        type(wan.build().transformer).from_pretrained(tmp_path / "transformer"), other.module["transformer"]
    )
    assert str(tmp_path) not in (tmp_path / "transformer" / "config.json").read_text()
    moved(trained, seed=1).save(tmp_path)
    assert {path.name for path in (tmp_path / "transformer").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    other.load(tmp_path)
    assert same_state(trained.module, other.module)


def test_a_checkpoint_of_something_else(tmp_path):
    full, adapter = TrainedWeights(wan.build()), TrainedWeights(wan.build(), peft_config=lora())
    full.save(tmp_path / "whole")
    adapter.save(tmp_path / "lora")
    TrainedWeights(wan22.build()).save(tmp_path / "two")
    for trained, folder, message in (
        (adapter, "whole", "another training: its kind is full, here it is lora.*peft_config"),
        (full, "two", "its components are .'transformer', 'transformer_2'., here"),
        (TrainedWeights(wan.build(seed=1)), "whole", "another model: it was trained from WanPipeline .transformer "),
        (TrainedWeights(wan.build(), peft_config=lora(r=3)), "lora", "shape \\(2, .* here it is \\(3, "),
        (TrainedWeights(wan.build(), peft_config=lora(target_modules=["to_q"])), "lora", "here it is None"),
        (TrainedWeights(wan.build(), peft_config=lora(lora_alpha=1)), "lora", "lora_alpha is 6, here it is 1"),
    ):
        state = {key: value.clone() for key, value in trained.module.state_dict().items()}
        for read in (trained.check, trained.load):
            with pytest.raises(ValueError, match=message):
                read(tmp_path / folder)
        assert all(torch.equal(state[key], value) for key, value in trained.module.state_dict().items())
    (tmp_path / "whole" / "weights.json").unlink()
    with pytest.raises(FileNotFoundError, match="no weights.json.*earlier checkpoint"):
        full.check(tmp_path / "whole")


def test_the_facts_beside_the_weights(tmp_path):
    pipe = wan22.build()
    model = digest.model(find_denoisers(pipe))
    trained = TrainedWeights(pipe, denoiser="transformer_2", peft_config=lora())
    trained.save(tmp_path)
    facts = json.loads((tmp_path / "weights.json").read_text())
    assert facts["kind"] == "lora" and facts["components"] == ["transformer_2"]
    assert facts["base"] == trained.base and facts["base"]["pipeline"] == "WanPipeline"
    assert facts["base"]["model"] == model, "taken before the LoRA was added"
    assert list(facts["base"]["components"]) == ["transformer_2"]
    assert facts["lora"]["transformer_2"]["lora_alpha"] == 6


# ------------------------------------------------------------------------------------------------------- model digest


def test_a_model_is_known_in_any_precision(tmp_path):
    wan.build().save_pretrained(tmp_path)
    kind = type(wan.build().transformer)
    digests = {
        digest.model({"transformer": kind.from_pretrained(tmp_path, subfolder="transformer", torch_dtype=dtype)})
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(digests) == 1 and len(digests.pop()) == 16


def test_another_model_has_another_digest():
    pipe = wan22.build()
    both = find_denoisers(pipe)
    first = digest.model(both)
    assert digest.model(dict(reversed(both.items()))) == first
    assert digest.model({name: digest.denoiser(part) for name, part in both.items()}) == first
    others = {digest.model({"transformer": part}) for part in both.values()} | {
        digest.model(find_denoisers(wan.build()))
    }
    with torch.no_grad():
        pipe.transformer_2.proj_out.weight[0, 0] += 1
    changed = digest.model(both)
    TrainedWeights(pipe, peft_config=lora())
    assert len({first, changed, digest.model(both), *others}) == len(others) + 3


# --------------------------------------------------------------------------------------------- the module of a trainer


def test_gradients_are_the_same_with_checkpointing():
    pipe = wan.build()
    pixels = example_pixels(wan.NUM_FRAMES, wan.HEIGHT, wan.WIDTH)
    step = PipelineStep(pipe, num_frames=wan.NUM_FRAMES, height=wan.HEIGHT, width=wan.WIDTH, check=False)
    module = TrainedWeights(pipe, peft_config=lora()).module.train()
    latents, noise = step.encode(pixels), step.noise(0)

    def gradients() -> dict[str, Tensor]:
        module.zero_grad()
        module(lambda: step.loss(latents, "a", noise=noise, timestep=500.0).loss).backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}

    plain = gradients()
    calls = []
    handle = pipe.transformer.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    module.gradient_checkpointing_enable({"preserve_rng_state": True})
    assert module.is_gradient_checkpointing
    torch.testing.assert_close(gradients(), plain, rtol=1e-5, atol=1e-8)
    assert len(calls) == 2, "once forwards, once again backwards"
    handle.remove()
    module.gradient_checkpointing_disable()
    assert not module.is_gradient_checkpointing
    with pytest.raises(ValueError, match="UNet3DConditionModel, which has no gradient checkpointing"):
        TrainedWeights(modelscope.build()).module.gradient_checkpointing_enable()


def test_the_module_is_called_with_a_task():
    module = Denoisers({"transformer": nn.Linear(2, 2)})
    assert module(lambda: 3) == 3
    assert set(module.state_dict()) == {"transformer.weight", "transformer.bias"}


def _trains(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
