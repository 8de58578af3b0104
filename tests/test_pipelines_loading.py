"""The ways in which users load a denoiser: LoRA, compiled, offloaded, quantised. Each works, or says what to do."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import FirstBlockCacheConfig, WanPipeline
from peft import LoraConfig
from PIL import Image

from hf_motive.errors import ClipError
from hf_motive.gradients import GradientFeature, GradientProjector, clip_feature, select_parameters
from hf_motive.pipelines import PipelineError
from hf_motive.projection import Fastfood
from tests.families import animatediff_more
from tests.families.common import example_pixels
from tests.families.compare import CAPTION, pipeline_step
from tests.families.wan import VARIANTS

(WAN,) = VARIANTS
LORA = {"r": 2, "lora_alpha": 2, "target_modules": ["to_q", "to_k", "to_v"]}


def feature(pipe: WanPipeline, pattern: str | None = None) -> GradientFeature:
    """One clip's feature, by the path of the attributor, and the digests of the weights."""
    step = pipeline_step(WAN, pipe)
    assert set(step.settings()["weights"]) == {"text_encoder", "transformer", "vae"}
    latents = step.encode(example_pixels(WAN.num_frames, WAN.height, WAN.width))
    parameters = select_parameters(step.denoisers, pattern)
    with GradientProjector(parameters, Fastfood(dim=64), step.denoisers.values()) as projector:
        loss = lambda: step.loss(latents, CAPTION, noise=step.noise(3), timestep=751).loss  # noqa: E731
        return clip_feature(projector, [loss])


@pytest.fixture(scope="module")
def plain() -> GradientFeature:
    return feature(WAN.build())


def near(found: GradientFeature, expected: GradientFeature) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.norm == pytest.approx(expected.norm, rel=1e-5)
    torch.testing.assert_close(found.vector, expected.vector, rtol=1e-4, atol=1e-5)
    assert found.coverage == expected.coverage


# ------------------------------------------------------------------------------------------------------------- LoRA


def test_a_fresh_lora_changes_nothing_but_has_a_gradient_of_its_own(plain):
    pipe = WAN.build()
    pipe.transformer.add_adapter(LoraConfig(**LORA))
    found = feature(pipe)  # base weights and LoRA
    assert found.loss == pytest.approx(plain.loss, rel=1e-6)
    assert found.norm > plain.norm
    only = feature(pipe, "lora_")
    assert 0 < only.norm < found.norm
    # B is zero until it is trained, and with it every gradient of A.
    with pytest.raises(ClipError, match="the gradient is zero in all 12 parameters.*LoRA"):
        feature(pipe, "lora_A")


def test_a_lora_loaded_from_a_file_is_attributed(plain, tmp_path):
    trained = WAN.build()
    trained.transformer.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in trained.transformer.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.1)
    WanPipeline.save_lora_weights(
        tmp_path,
        {
            name.replace(".default", ""): value
            for name, value in trained.transformer.state_dict().items()
            if "lora_" in name
        },
    )
    pipe = WAN.build()
    pipe.load_lora_weights(tmp_path, adapter_name="default")
    found = feature(pipe, "lora_")
    assert found.loss != pytest.approx(plain.loss, rel=1e-6)
    near(found, feature(trained, "lora_"))


# --------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize("how", ["module", "in place", "repeated blocks"])
def test_a_compiled_denoiser_gives_the_same_feature(how, plain):
    torch._dynamo.reset()
    pipe = WAN.build()
    if how == "module":
        pipe.transformer = torch.compile(pipe.transformer, backend="aot_eager")
    elif how == "in place":
        pipe.transformer.compile(backend="aot_eager")
    else:
        pipe.transformer.compile_repeated_blocks(backend="aot_eager")
    doors = ("forward", "_compiled_call_impl")
    before = {name: vars(pipe.transformer).get(name) for name in doors}
    near(feature(pipe), plain)
    assert {name: vars(pipe.transformer).get(name) for name in doors} == before


# -------------------------------------------------------------------------------------------------------- offloaded


def test_whole_models_may_be_offloaded(plain):
    pipe = WAN.build()
    pipe.enable_model_cpu_offload(device="cpu")
    near(feature(pipe), plain)


def test_weights_that_no_gradient_reaches_are_refused():
    pipe = WAN.build()
    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    with pytest.raises(PipelineError, match=r"weights of its transformer are offloaded.*enable_model_cpu_offload\(\)"):
        pipeline_step(WAN, pipe)
    pipe = WAN.build()
    cpu_offload(pipe.text_encoder, execution_device=torch.device("cpu"))
    with pytest.raises(
        PipelineError, match=r"weights of its text_encoder are offloaded.*enable_model_cpu_offload\(\)"
    ):
        pipeline_step(WAN, pipe)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level", "disk"])
def test_groups_may_be_offloaded_of_all_but_the_denoiser(kind, plain):
    cpu = torch.device("cpu")
    options = {"onload_device": cpu, "offload_device": cpu, "offload_type": "leaf_level"}
    if kind == "block_level":
        options |= {"offload_type": "block_level", "num_blocks_per_group": 1}
    with tempfile.TemporaryDirectory() as folder:
        if kind == "disk":
            options["offload_to_disk_path"] = folder
        pipe = WAN.build()
        pipe.transformer.enable_group_offload(**options)
        with pytest.raises(PipelineError, match="its transformer is offloaded in groups.*Load it again without"):
            pipeline_step(WAN, pipe)
    pipe = WAN.build()
    pipe.vae.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    near(feature(pipe), plain)


# ----------------------------------------------------------------------------------------------------------- cached


def test_a_denoiser_that_reuses_what_it_computed_is_refused():
    pipe = WAN.build()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(PipelineError, match=r"its transformer reuses what it computed.*\.disable_cache\(\)"):
        pipeline_step(WAN, pipe)


# -------------------------------------------------------------------------------------------------------- quantised


def quantised() -> WanPipeline:
    torchao = pytest.importorskip("torchao.quantization")
    pipe = WAN.build(torch.bfloat16)
    blocks = lambda module, name: isinstance(module, torch.nn.Linear) and "blocks" in name  # noqa: E731
    torchao.quantize_(pipe.transformer, torchao.Int8WeightOnlyConfig(), filter_fn=blocks)
    return pipe


def test_a_lora_on_quantised_weights_is_attributed():
    pipe = quantised()
    pipe.transformer.requires_grad_(False)
    pipe.transformer.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    full = WAN.build(torch.bfloat16)
    full.transformer.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in full.transformer.named_parameters():
            if "lora_" in name:
                parameter.copy_(pipe.transformer.get_parameter(name))
    found, expected = feature(pipe, "lora_"), feature(full, "lora_")
    assert found.loss == pytest.approx(expected.loss, rel=0.02)
    assert torch.cosine_similarity(found.vector, expected.vector, dim=0) > 0.95


# ------------------------------------------------------------------------------------------------------ what is told


def test_settings_know_adapters_and_values_in_every_process():
    pipe = WAN.build()
    pipe.transformer.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    step = pipeline_step(WAN, pipe)
    before = step.settings()
    pipe.set_adapters("default", 0.25)
    changed = step.settings()["weights"]
    assert {name for name, found in changed.items() if found != before["weights"][name]} == {"transformer"}

    def told(value: Any) -> str:
        step.call_kwargs = {"value": value}
        return step.settings()["call_kwargs"]["value"]

    values = torch.zeros(5000)
    assert told(values) == told(values.clone())
    assert told(values) != told(values.index_fill(0, torch.tensor([2500]), 1.0)), "a change that printing leaves out"
    red, blue = (lambda: Image.new("RGB", (8, 8), "red")), Image.new("RGB", (8, 8), "blue")
    assert told(red()) == told(red()) != told(blue), "an image's address is not its value"


def test_a_vae_that_the_call_casts_is_cast_back():
    (variant,) = [variant for variant in animatediff_more.VARIANTS if variant.name == "animatediff-sdxl"]
    pipe = variant.build(torch.float16)
    pipe.vae.config.force_upcast = True
    pipeline_step(variant, pipe)
    assert pipe.vae.dtype == torch.float16
