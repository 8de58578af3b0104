"""A training that ends on a loopback Hub: `hf-motive train --push_to_hub`, by the real client."""

from __future__ import annotations

import pytest

from tests.clips import write_corpus
from tests.families import wan
from tests.test_hub_models import card, client, hub, no_faults  # noqa: F401

SIZE = ["--num_frames", wan.NUM_FRAMES, "--height", wan.HEIGHT, "--width", wan.WIDTH]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    wan.build().save_pretrained(folder / "pipeline")
    write_corpus(folder / "clips", range(3))
    return folder


def words(folder, output, *more) -> list[str]:
    said = ["train", "--model_name_or_path", folder / "pipeline", "--dataset", folder / "clips", *SIZE]
    said += ["--encodings", folder / "encodings", "--output_dir", output, "--max_steps", 2, "--sample_count", 0]
    said += ["--threads", 1, "--disable_tqdm", "true", "--save_strategy", "no", "--license", "mit", *more]
    return [str(word) for word in said]


def test_a_training_publishes_what_it_made(hub, client, folder):  # noqa: F811
    output = folder / "tuned"
    pushing = ["--push_to_hub", "true", "--hub_model_id", "tester/tuned", "--use_peft", "true"]
    done = client.value("command", words=words(folder, output, *pushing))
    assert done["ended"] == ""
    assert f"Published: {hub.url}/tester/tuned" in done["printed"]
    files = hub.files("tester/tuned")
    name = "pytorch_lora_weights.safetensors"
    assert files[name] == (output / name).read_bytes()
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pth")) or "checkpoint" in path]
    header, text = card(hub, "tester/tuned")
    assert header["license"] == "mit" and "lora" in header["tags"]
    assert 'pipe.load_lora_weights("tester/tuned"' in text
    assert hub.repo("tester/tuned").private


def test_who_may_not_push_is_told_before_the_training(hub, client, folder):  # noqa: F811
    output = folder / "refused"
    pushing = ["--push_to_hub", "true", "--hub_model_id", "tester/refused"]
    done = client.value("command", words=words(folder, output, *pushing), token="hf_test_read")
    assert done["ended"].startswith("error: ") and "write permission" in done["ended"]
    assert "'loss'" not in done["printed"]
    assert not (output / "transformer").exists()


def test_a_push_that_fails_leaves_the_model_and_the_command(hub, client, folder):  # noqa: F811
    output = folder / "failed"
    hub.fail("commit", 403, times=10_000)
    pushing = ["--push_to_hub", "true", "--hub_model_id", "tester/failed"]
    done = client.value("command", words=words(folder, output, *pushing))
    assert done["ended"].startswith("error: ")
    assert done["ended"].endswith(f"To try again: hf-motive push {output} tester/failed --license mit")
    assert (output / "transformer" / "config.json").exists() and (output / "README.md").exists()
    hub._faults.clear()
    again = client.value("command", words=["push", str(output), "tester/failed", "--license", "mit"])
    assert again["ended"] == ""
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert hub.files("tester/failed")[weights] == (output / weights).read_bytes()
