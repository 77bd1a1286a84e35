"""A folder to work in, as a newcomer's: the files that the pages speak of, and a standard library of few files."""

import shutil
import sysconfig
from pathlib import Path

import pytest

FILES = {
    "reviews.csv": "review,verdict\n"
    + "".join(f"warm and funny {i},good\n{i} hours too long,bad\n" for i in range(40)),
    "new.csv": "id,review\n7,a warm film\n8,much too long\n",
    "books/one.txt": "It was late, and the lamps along the river had been lit.\n" * 60,
    "books/two.txt": "Nobody on the bridge looked up when the second bell rang.\n" * 60,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A standard library of twenty files."""
    folder = tmp_path_factory.mktemp("library")
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))[:20]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def workplace(tmp_path, library, monkeypatch):
    """An empty folder with the files that the pages speak of, in which the small library is the standard one."""
    get_path = sysconfig.get_path
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library) if name == "stdlib" else get_path(name))
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path
