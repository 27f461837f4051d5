"""Les Houches files: read as pylhe reads them, sliced byte for byte, damage found and named."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pylhe
import pytest

from massrecon.errors import ImportFileError, InputError
from massrecon.events.lhe import LheFile
from tests.samples import WEIGHTS, lhe_text, write_lhe

N = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_lhe(tmp_path / "events.lhe", N)


def edited(path: Path, old: bytes, new: bytes, times: int = 1) -> Path:
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, times))
    return path


def particle_line(path: Path, event: int, particle: int) -> list[bytes]:
    block = path.read_bytes().split(b"<event>\n")[event + 1]
    return block.split(b"\n")[particle].split()


def change_number(path: Path, event: int, particle: int, column: int, value: bytes) -> Path:
    """Replaces one number of one particle."""
    words = particle_line(path, event, particle)
    old = b" " + b" ".join(words)
    words[column] = value
    return edited(path, old, b" " + b" ".join(words))


@pytest.mark.parametrize("suffix", [".lhe", ".lhe.gz"])
def test_particles_and_weights_agree_with_pylhe(tmp_path: Path, suffix: str) -> None:
    path = write_lhe(tmp_path / f"events{suffix}", N)
    file = LheFile.open(path)
    assert (file.n_events, file.weight_names) == (N, WEIGHTS)
    events, weights = file.events(0, N), file.weights(0, N)
    theirs = list(pylhe.LHEFile.fromfile(str(path)).events)
    for i, event in enumerate(theirs):
        rows = events.rows[events.first[i] : events.first[i + 1]]
        expected = [[p.id, p.status, p.px, p.py, p.pz, p.e, p.m] for p in event.particles]
        np.testing.assert_array_equal(rows[:, (0, 1, 6, 7, 8, 9, 10)], expected)
        assert weights["weight"][i] == event.eventinfo.weight
        for name in WEIGHTS:
            assert weights[f"weight_{name}"][i] == event.weights[name]


def test_the_head_gives_cross_section_and_beams(path: Path) -> None:
    file = LheFile.open(path)
    assert file.cross_section_fb == pytest.approx(16.9)
    assert file.beam_energies == (7000.0, 7000.0)
    assert file.beam_energy == 14000.0
    assert file.skipped == {}


@pytest.mark.parametrize("suffix", [".lhe", ".lhe.gz"])
def test_slices_put_together_are_the_file(tmp_path: Path, suffix: str) -> None:
    path = write_lhe(tmp_path / f"events{suffix}", N)
    file, together = LheFile.open(path), b""
    for start, stop in ((0, 5), (5, 6), (6, N)):
        file.write_slice(start, stop, tmp_path / "slice.lhe")
        part = LheFile.open(tmp_path / "slice.lhe")
        assert part.n_events == stop - start
        assert part.cross_section_fb == file.cross_section_fb
        np.testing.assert_array_equal(part.events(0, 1).rows, file.events(start, start + 1).rows)
        text = (tmp_path / "slice.lhe").read_bytes()
        together += text.removeprefix(file.head).removesuffix(b"</LesHouchesEvents>\n")
    assert file.head + together + b"</LesHouchesEvents>\n" == lhe_text(N)


def test_a_slice_without_events_is_a_file(path: Path, tmp_path: Path) -> None:
    LheFile.open(path).write_slice(3, 3, tmp_path / "none.lhe")
    assert LheFile.open(tmp_path / "none.lhe").n_events == 0


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (5, 4), (0, N + 1)])
def test_events_that_are_not_there_cannot_be_sliced(path: Path, start: int, stop: int) -> None:
    with pytest.raises(InputError, match=f"has {N} events: there is no slice"):
        LheFile.open(path).weights(start, stop)


def test_files_without_alternative_weights_have_the_nominal_one(tmp_path: Path) -> None:
    file = LheFile.open(write_lhe(tmp_path / "plain.lhe", N, weights=False))
    assert file.weight_names == ()
    assert file.weights(2, 5).keys() == {"weight"}


def test_compressed_weight_lists_are_named_by_the_header(path: Path) -> None:
    text = path.read_text()
    for entry in range(N):
        values = [f"{entry + 0.1 * i:.3f}" for i in range(3)]
        start, end = text.index("<rwgt>"), text.index("</rwgt>") + len("</rwgt>")
        text = text[:start] + f"<weights> {' '.join(values)} </weights>" + text[end:]
    path.write_text(text)
    file = LheFile.open(path)
    assert file.weight_names == WEIGHTS
    np.testing.assert_allclose(file.weights(4, 6)["weight_PDF 7"], [4.2, 5.2])


@pytest.mark.parametrize(
    ("event", "particle", "column", "value", "message"),
    [
        (3, 9, 6, b"17.5", "a particle is off its mass"),
        (2, 9, 7, b"nan", "a number of a particle is not finite"),
        (2, 9, 7, b"1e999", "a number of a particle is not finite"),
        (4, 3, 9, b"-800.0", "an energy is negative"),
        (1, 18, 0, b"2", "charge is not conserved"),
        (1, 13, 2, b"77", "a decay does not conserve momentum, or a mother is missing"),
        (1, 13, 1, b"7", "a particle has an unknown status"),
        (1, 13, 2, b"5.5", "a code or mother is not an integer"),
        (5, 13, 6, b"12x", "could not convert"),
        (5, 13, 6, b"1_2.5", "underscore"),
        (5, 2, 1, b"1", "it does not have two incoming particles"),
    ],
)
def test_bad_events_are_named_or_skipped(
    path: Path, event: int, particle: int, column: int, value: bytes, message: str
) -> None:
    change_number(path, event, particle, column, value)
    with pytest.raises(ImportFileError, match=rf"events\.lhe', event {event}: .*{message}"):
        LheFile.open(path)
    file = LheFile.open(path, skip_bad=True)
    assert file.n_events == N - 1
    assert list(file.skipped.values()) == [1]
    sound = LheFile.open(write_lhe(path.with_name("sound.lhe"), N))
    np.testing.assert_array_equal(
        file.events(event, event + 1).rows, sound.events(event + 1, event + 2).rows
    )


def test_a_flipped_sign_violates_momentum_conservation(path: Path) -> None:
    value = particle_line(path, 6, 9)[7]
    flipped = value[1:] if value.startswith(b"-") else b"-" + value
    change_number(path, 6, 9, 7, flipped)
    with pytest.raises(ImportFileError, match="event 6: momentum is not conserved"):
        LheFile.open(path)


def test_the_tolerance_is_what_the_docs_say(path: Path) -> None:
    words = particle_line(path, 0, 9)
    change_number(path, 0, 9, 6, b"%.10e" % (float(words[6]) * (1 + 1e-8)))
    assert LheFile.open(path).n_events == N


def test_more_energy_than_the_beams_is_refused(path: Path) -> None:
    edited(path, b"7.00000000e+03 7.00000000e+03", b"3.00000000e+02 3.00000000e+02")
    with pytest.raises(ImportFileError, match="event 0: .* more energy than its beam"):
        LheFile.open(path)


def test_repeated_events_are_found(path: Path) -> None:
    block = b"<event>" + path.read_bytes().split(b"<event>")[3]
    edited(path, block, block + block)
    with pytest.raises(ImportFileError, match="event 3: it repeats an earlier event"):
        LheFile.open(path)
    file = LheFile.open(path, skip_bad=True)
    assert (file.n_events, file.skipped) == (N, {"it repeats an earlier event": 1})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"</LesHouchesEvents>", b"", "ends too early, without '</LesHouchesEvents>'"),
        (b"</event>", b"", r"ends too early or lacks '</event>' \(after 0 events\)"),
        (b"<init>", b"<in>", "has no complete '<init>' block"),
        (b" 1.69e-02", b" nan", "damaged '<init>' block"),
        (b"247000 3 1", b"247000 3 2", "damaged '<init>' block"),
        (b"<LesHouchesEvents", b"<LesHouchesEvent5", "is no Les Houches event file"),
        (b"</event>\n<event>", b"</event>\njunk\n<event>", "has unexpected text at byte"),
        (b"</LesHouchesEvents>", b"</LesHouchesEvents>\n<LesHouchesEvents>", "goes on after its"),
        (b"'1001'> ", b"'1002'> ", "event 0: its weights|event 1: its weights"),
        (b"</wgt>", b"</wgt", "one of its '<wgt>' entries is damaged"),
    ],
)
def test_damaged_structure_is_refused(path: Path, old: bytes, new: bytes, message: str) -> None:
    edited(path, old, new)
    with pytest.raises(ImportFileError, match=message):
        LheFile.open(path)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncation_is_refused_and_never_skipped(tmp_path: Path, keep: float) -> None:
    for suffix in (".lhe", ".lhe.gz"):
        path = write_lhe(tmp_path / f"events{suffix}", N)
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(ImportFileError, match="ends too early|truncated or damaged"):
            LheFile.open(path, skip_bad=True)


def test_a_flipped_bit_in_a_compressed_file_is_always_found(tmp_path: Path) -> None:
    path = write_lhe(tmp_path / "events.lhe.gz", N)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ImportFileError, match="truncated or damaged|event"):
        LheFile.open(path)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.lhe.gz"
    path.write_bytes(gzip.compress(b"<LesHouchesEvents>\n" + b"0" * 50_000_000, 9))
    assert path.stat().st_size < 100_000
    with pytest.raises(ImportFileError, match="has a line of more than"):
        LheFile.open(path)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="is a folder"):
        LheFile.open(tmp_path)
    with pytest.raises(ImportFileError, match="no such file"):
        LheFile.open(tmp_path / "nothing.lhe")
    (tmp_path / "empty.lhe").touch()
    with pytest.raises(ImportFileError, match=r"empty\.lhe' is empty"):
        LheFile.open(tmp_path / "empty.lhe")
    os.mkfifo(tmp_path / "pipe.lhe")
    with pytest.raises(ImportFileError, match="is not an ordinary file"):
        LheFile.open(tmp_path / "pipe.lhe")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission_is_refused(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(ImportFileError, match="permission denied"):
        LheFile.open(path)


def test_a_file_that_changes_later_is_refused(path: Path) -> None:
    file = LheFile.open(path)
    write_lhe(path, N, seed=2)
    with pytest.raises(ImportFileError, match="changed while it was read"):
        file.weights(0, 1)
