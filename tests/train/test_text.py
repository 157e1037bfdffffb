"""Corpora, windows, the shipped text and the n-gram yardsticks."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from nestflow.data import files_of, shipped
from nestflow.data.build_shakespeare import PLAYS, clean
from nestflow.diagnostics import NestflowError
from nestflow.train.data import Windows, corpus, split_files, validation_windows
from nestflow.train.ngrams import baselines, ngram_bpb


def code(error: pytest.ExceptionInfo[NestflowError]) -> str:
    return error.value.diagnostics[0].code


def test_shipped_text_is_what_its_provenance_says():
    assert "shakespeare" in shipped()
    files = files_of("shakespeare")
    assert [f.stem for f in files] == sorted(PLAYS)
    provenance = (files[0].parent / "PROVENANCE.md").read_text()
    for f in files:
        assert hashlib.sha256(f.read_bytes()).hexdigest() in provenance, f.name


def test_shipped_text_is_clean():
    for f in files_of("shakespeare"):
        data = f.read_bytes()
        assert b"\r" not in data and b" \n" not in data and b"\n\n\n" not in data
        assert b"gutenberg" not in data.lower()


def test_clean():
    raw = b"x\r\n*** START OF THE PROJECT ***\r\nA  \r\n\r\n\r\n\r\nB\t\r\n*** END OF THE PROJECT ***\r\nlicence\r\n"
    assert clean(raw) == b"A\n\nB\n"


def test_yardsticks_on_the_shipped_text():
    c = corpus("shakespeare")
    assert (len(c.train_N), len(c.val_M)) == (1_078_811, 119_871)
    found = {name: round(bpb, 2) for name, bpb in baselines(c).items()}
    assert found == {"unigram": 4.80, "bigram": 3.58, "trigram": 2.82, "4-gram": 2.40}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngrams_against_counting_by_hand(n: int):
    text = b"the cat sat on the mat, the rat ate the oats and the cat sat on that" * 3
    c = split_files("t", [("t", text)], 0.3)
    train, val = bytes(c.train_N.tolist()), bytes(c.val_M.tolist())
    joint = Counter(train[i : i + n] for i in range(len(train) - n + 1))
    context = Counter(g[:-1] for g in joint.elements())
    k = 0.1
    bits = [
        -math.log2((joint[g] + k) / (context[g[:-1]] + 256 * k))
        for g in (val[i : i + n] for i in range(len(val) - n + 1))
    ]
    assert ngram_bpb(c, n, (k,))[0] == pytest.approx(sum(bits) / len(bits), abs=1e-12)


def test_split_holds_out_the_end_of_each_file():
    c = split_files("t", [("a", bytes(range(100))), ("b", bytes(range(100, 150)))], 0.1)
    assert c.val_M.tolist() == [*range(90, 100), *range(145, 150)]
    assert c.train_N.tolist() == [*range(90), *range(100, 145)]


def test_fingerprint_tells_texts_and_splits_apart():
    a = split_files("t", [("a", b"abcdefghij")], 0.1)
    b = split_files("t", [("a", b"abcdefghiX")], 0.1)
    assert a.fingerprint != b.fingerprint and a.fingerprint == split_files("u", [("z", b"abcdefghij")], 0.1).fingerprint


def test_windows_are_pieces_of_the_text_and_repeat_after_restore():
    text_N = torch.arange(200, dtype=torch.uint8)
    w = Windows(text_N, batch=5, length=16, seed=3)
    x_BT = w.next()
    assert x_BT.dtype == torch.int64 and x_BT.shape == (5, 16)
    assert (x_BT.diff(dim=1) == 1).all()
    state = w.state()
    after = [w.next() for _ in range(3)]
    other = Windows(text_N, batch=5, length=16, seed=99)
    other.restore(state)
    assert all(torch.equal(a, other.next()) for a in after)
    assert not torch.equal(after[0], after[1])
    assert not torch.equal(Windows(text_N, 5, 16, seed=4).next(), x_BT)


def test_every_window_of_the_text_can_be_drawn():
    text_N = torch.arange(6, dtype=torch.uint8)
    w = Windows(text_N, batch=64, length=4)
    assert {int(x) for x in w.next()[:, 0]} == {0, 1, 2}


def test_validation_windows_are_even_and_do_not_overlap():
    text_N = (torch.arange(1000) % 251).to(torch.uint8)
    w_nT1 = validation_windows(text_N, 64, 10)
    assert w_nT1.shape == (10, 65)
    assert w_nT1[0, 0] == 0 and w_nT1[-1, -1] == 999 % 251
    assert validation_windows(text_N, 64, 1000).shape[0] == 1000 // 65


def test_binary_files_are_bytes(tmp_path: Path):
    (tmp_path / "x.bin").write_bytes(bytes(range(256)) * 8)
    assert int(corpus(tmp_path / "x.bin").train_N.max()) == 255


def test_folder_of_texts(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b" * 20)
    (tmp_path / "sub" / "a.txt").write_text("a" * 10)
    (tmp_path / "no.md").write_text("x")
    c = corpus(tmp_path)
    assert len(c.files) == 2 and len(c.train_N) == 27


def test_mistakes_about_text_are_told(tmp_path: Path):
    with pytest.raises(NestflowError) as e:
        corpus("shakespere")
    assert code(e) == "NF520" and "shakespeare" in (e.value.diagnostics[0].help or "")
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(NestflowError) as e:
        corpus(tmp_path / "empty.txt")
    assert code(e) == "NF521"
    (tmp_path / "folder").mkdir()
    with pytest.raises(NestflowError) as e:
        corpus(tmp_path / "folder")
    assert code(e) == "NF520"
    with pytest.raises(NestflowError) as e:
        Windows(torch.zeros(16, dtype=torch.uint8), 1, 16)
    assert code(e) == "NF522" and "15" in (e.value.diagnostics[0].help or "")
    with pytest.raises(NestflowError) as e:
        corpus(b"abc", holdout=1.5)
    assert code(e) == "NF524"
