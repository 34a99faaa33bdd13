"""Targets of exports: complete or not there, and never in the place of what was not exported."""

import os
from pathlib import Path

import pytest

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.exports import describe, replace_atomically, size_of

KINDS = ["nothing", "file", "exported", "empty folder"]


def make(path, kind, text="old"):
    if kind == "file":
        path.write_text(text)
    elif kind != "nothing":
        path.mkdir()
        if kind == "exported":
            (path / "part").write_text(text)
            describe(path, format=text)


def state(folder):
    return {path.relative_to(folder): path.is_dir() or path.read_text() for path in folder.rglob("*")}


@pytest.mark.parametrize("new", ["file", "exported"])
@pytest.mark.parametrize("old", KINDS)
def test_what_is_written_takes_the_place_of_what_was_there(tmp_path, old, new):
    target = tmp_path / "out"
    make(target, old)
    with replace_atomically([target], overwrite=True) as (path,):
        make(path, new, "new")
        size = size_of(path)
        assert not target.is_file() or target.read_text() == "old"
    make(tmp_path / "expected", new, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "expected"}
    assert state(target) == state(tmp_path / "expected") and size == size_of(target) > 0
    assert target.is_dir() or target.read_text() == "new"


@pytest.mark.parametrize("old", KINDS)
def test_a_failure_leaves_what_was_there(tmp_path, old):
    make(tmp_path / "out", old)
    before = state(tmp_path)
    with pytest.raises(KeyboardInterrupt), replace_atomically([tmp_path / "out"], overwrite=True) as (path,):
        make(path, "exported", "new")
        raise KeyboardInterrupt
    assert state(tmp_path) == before


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path, monkeypatch):
    make(tmp_path / "out", "exported")
    before, replace = state(tmp_path), Path.replace

    def refused(path, target):
        if path.name == "out" and target == tmp_path / "out":
            raise OSError("no")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    with (
        pytest.raises(OSError, match="no"),
        replace_atomically([tmp_path / "out"], overwrite=True) as (path,),
    ):
        make(path, "exported", "new")
    assert state(tmp_path) == before


def test_several_targets(tmp_path):
    targets = [tmp_path / "a", tmp_path / "b"]
    make(targets[1], "file")
    with (
        pytest.raises(InvalidInputError, match="b' exists already"),
        replace_atomically(targets, overwrite=False),
    ):
        pytest.fail("nothing is to be written")
    with replace_atomically(targets, overwrite=True) as written:
        for path in written:
            make(path, "file", path.name)
    assert state(tmp_path) == {Path("a"): "a", Path("b"): "b"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("old", ["folder of others", "link to an exported folder"])
def test_what_is_never_replaced(tmp_path, old, overwrite):
    target = tmp_path / "out"
    if old == "folder of others":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        make(tmp_path / "elsewhere", "exported")
        os.symlink(tmp_path / "elsewhere", target)
    before = state(tmp_path)
    message = "was not exported" if overwrite else "exists already"
    with pytest.raises(InvalidInputError, match=message), replace_atomically([target], overwrite=overwrite):
        pytest.fail("nothing is to be written")
    assert state(tmp_path) == before


def test_a_link_to_nothing_is_there(tmp_path):
    target = tmp_path / "out"
    os.symlink(tmp_path / "elsewhere", target)
    with (
        pytest.raises(InvalidInputError, match="exists already"),
        replace_atomically([target], overwrite=False),
    ):
        pytest.fail("nothing is to be written")
    with replace_atomically([target], overwrite=True) as (path,):
        make(path, "file", "new")
    assert not target.is_symlink() and target.read_text() == "new"
