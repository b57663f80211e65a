"""rgalign engine export and build --for, from a trained run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rgalign.cli import app
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, ProvenanceError
from rgalign.reasoner.pretrained import load_model, load_tokenizer
from rgalign.training.engine_export import export_run
from rgalign.training.latents import LatentStore
from rgalign.training.ranker_files import load_ranker


def test_an_exported_run_gives_its_query_vectors_from_text(trained: SimpleNamespace, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["engine", "export", str(trained.run), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "same token ids as text: 100.0 %" in done.output
    info = json.loads((tmp_path / "out" / "rgalign.json").read_text())
    loaded = load_ranker(trained.run)
    assert info["ranker"] == loaded.hash

    # The 40 validation sessions, by the exported files alone, against the run's own latent queries and query tower.
    store, dataset = LatentStore.open(trained.latents), Dataset.open(trained.dataset)
    latents = torch.from_numpy(store.take(store.rows(dataset, "valid")))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(loaded.ranker.query(latents), dim=-1)
        decoder = load_model(str(tmp_path / "out")).get_decoder()
        dense = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")
        tokenizer = load_tokenizer(str(tmp_path / "out"))
        for row, page in enumerate(dataset.table("valid", ["page"]).column("page").to_pylist()[:12]):
            title = dataset.schema.vocabularies["pages"][page]
            text = tokenizer.decode(info["prefix_ids"]) + f"Page: {title}" + tokenizer.decode(info["suffix_ids"])
            ids = torch.tensor([tokenizer(text).input_ids])
            state = decoder(input_ids=ids).last_hidden_state[0, -1]
            found = dense["linear.weight"] @ state + dense["linear.bias"]
            assert torch.nn.functional.cosine_similarity(found, expected[row], dim=0) >= 0.99999


def test_what_export_refuses(trained: SimpleNamespace, tmp_path: Path) -> None:
    other = tmp_path / "latents"
    shutil.copytree(trained.latents, other)
    provenance = (other / "provenance.json").read_text()
    (other / "provenance.json").write_text(provenance.replace('"template": "short"', '"template": "other"'))
    with pytest.raises(ProvenanceError, match="template 'short'; received template 'other'"):
        export_run(trained.run, tmp_path / "out", latents=other)
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings.replace(f"latents: {trained.latents}", "latents: null"))
    with pytest.raises(ConfigError, match="a run with latent queries"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["vllm", "tensorrt-llm"])
def test_build_for_another_engine(target: str, trained: SimpleNamespace, tmp_path: Path) -> None:
    command = ["engine", "build", trained.model, "--for", target, "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "rgalign.json").read_text())["target"] == target
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].dtype == torch.int8
    refused = CliRunner().invoke(app, [*command, "--dtype", "int8a12"])
    assert isinstance(refused.exception, ConfigError)
