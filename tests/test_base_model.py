"""Tests of naming a model folder by its bytes."""

import shutil
from pathlib import Path

import pytest

from mmar_jobs import base_model
from mmar_jobs.base_model import check_config, model_digest
from mmar_jobs.errors import DataError


def test_digest_knows_every_byte_and_name(model_folder: Path, tmp_path: Path) -> None:
    """A copy has the same digest; a changed byte or a renamed file gives another."""
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    digest = model_digest(model_folder)
    assert digest == model_digest(folder)
    (folder / "chat_template.jinja").rename(folder / "other.jinja")
    renamed = model_digest(folder)
    assert digest != renamed
    (folder / "other.jinja").write_text("x")
    assert renamed != model_digest(folder)


def test_a_folder_is_read_once_and_again_when_changed(model_folder: Path, tmp_path: Path) -> None:
    """Asked twice the files are not read twice; a byte changed in place is seen all the same."""
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    digest = model_digest(folder)
    num_reads = base_model._digest.cache_info().misses
    assert digest == model_digest(folder)
    assert num_reads == base_model._digest.cache_info().misses
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", " ", 1))
    assert digest != model_digest(folder)


def test_unreadable_file_is_named(model_folder: Path, tmp_path: Path) -> None:
    """A dangling link to weights, as an unfinished download cache leaves them, is one line."""
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    (folder / "model-00002.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"model-00002\.safetensors cannot be read \(No such file"):
        model_digest(folder)


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    """Not there, and empty."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"holds no \.safetensors file: give a model folder"):
            model_digest(folder)
        with pytest.raises(DataError, match=r"config\.json is missing"):
            check_config(folder)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    """A list is JSON and no config."""
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="model type none"):
        check_config(tmp_path)


def test_healthy_config_passes(model_folder: Path) -> None:
    """The tiny model's own."""
    check_config(model_folder)
