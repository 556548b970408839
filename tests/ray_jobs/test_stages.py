import json
import resource
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from avtok.decode import decode_clip
from avtok.load import codec_spec, load_codec
from ray_jobs import stores
from ray_jobs.cache import cache_files, content_of
from ray_jobs.dataset import held_out_batches
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from ray_jobs.plan import PADDING, make_plan
from ray_jobs.stages import ClipLatents, EncodeBatch, to_latent_batch
from tests.avtok.small_encoders import dino, wav2vec
from worldmodel.config import RunConfig, TargetConfig


def with_data(cfg, **changed):
    return cfg.model_copy(update={"data": cfg.data.model_copy(update=changed)})


def with_cache(cfg, folder):
    return with_data(cfg, cache=str(folder))


def sample_of(plan, name, nth=0):
    return [i for i in range(plan.num_samples) if plan.sample(i).uri.endswith(name)][nth]


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert np.array_equal(array, right[name]), name


def test_latents_are_those_of_the_decoded_cut_with_its_left_context(plan, cfg):
    encode = EncodeBatch(plan, cfg)
    sample_id = sample_of(plan, "bounce_2.mp4", nth=1)
    sample = plan.sample(sample_id)
    assert (sample.start_s, sample.end_s) == (1.0, 2.0)
    cut = {"start_s": 1.0, "end_s": 2.0, "fps": 16, "size": (64, 64), "sample_rate": 16000}
    context = codec_spec(cfg.codec.audio).left_context_units
    clip = decode_clip(sample.uri, **cut, context_samples=context)
    arrays = encode.encode(sample_id).arrays
    expected_video = load_codec(cfg.codec.video).encode(clip.video_THWC)
    expected_audio = load_codec(cfg.codec.audio).encode(clip.audio_N, context_samples=context)
    assert arrays["video"].shape == (4, 8, 8, 48)
    assert arrays["audio"].shape == (64, 32)
    assert np.array_equal(arrays["video"], expected_video.numpy().astype(np.float16))
    assert np.array_equal(arrays["audio"], expected_audio.numpy().astype(np.float16))
    assert arrays["video_valid"].all()
    assert arrays["audio_valid"].all()
    whole = decode_clip(sample.uri, **cut | {"start_s": 0.0})
    from_whole = load_codec(cfg.codec.audio).encode(whole.audio_N).numpy()[64:]
    assert np.abs(from_whole - arrays["audio"]).max() < 0.01  # a cut equals the same cut of the whole


def test_absent_modality_is_zeros_and_the_clip_stays_usable(plan, cfg):
    encode = EncodeBatch(plan, cfg)
    for name in ("no_sound.mp4", "muted.mp4"):  # a muted track would teach that the world is silent
        silent = encode.encode(sample_of(plan, name))
        assert silent.reason == ""
        assert silent.arrays["video_valid"].all()
        assert not silent.arrays["audio_valid"].any()
        assert not silent.arrays["audio"].any()
    blind = encode.encode(sample_of(plan, "no_picture.mp4"))
    assert blind.reason == ""
    assert not blind.arrays["video_valid"].any()
    assert not blind.arrays["video"].any()
    assert blind.arrays["audio_valid"].all()


def test_steps_past_the_end_of_the_media_are_invalid_zeros(plan, cfg):
    short = EncodeBatch(plan, cfg).encode(sample_of(plan, "short.mp4"))  # 10 frames: two whole steps of four
    assert short.reason == ""
    assert short.arrays["video_valid"].tolist() == [True, True, False, False]
    assert short.arrays["audio_valid"].sum() == 32  # the sound of the same half second
    assert not short.arrays["video"][2:].any()
    assert short.arrays["video"][:2].any()


def test_caption_is_bytes_plus_one_cut_to_the_models_length(plan, cfg):
    sample_id = sample_of(plan, "bounce_0.mp4")
    text = EncodeBatch(plan, cfg).encode(sample_id).arrays["text"]
    caption = plan.sample(sample_id).text
    assert bytes(int(value) - 1 for value in text if value).decode() == caption
    short_text = cfg.model_copy(update={"model": cfg.model.model_copy(update={"text_tokens": 3})})
    assert len(EncodeBatch(plan, short_text).encode(sample_id).arrays["text"]) == 3


def test_actions_are_padded_to_the_models_width_and_absent_ones_invalid(tmp_path, clip_folder, cfg):
    rows = [
        {"video": str(clip_folder / "bounce_0.mp4"), "actions": [[1, 2]] * 20},
        {"video": str(clip_folder / "bounce_1.mp4")},
    ]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    index_sources([str(tmp_path / "m.json")], out=str(tmp_path / "m.parquet"))
    plan = make_plan(str(tmp_path / "m.parquet"), cfg)
    encode = EncodeBatch(plan, cfg)
    second = encode.encode(sample_of(plan, "bounce_0.mp4", nth=1)).arrays
    assert second["actions"].shape == (16, 4)
    assert second["actions"][:4].tolist() == [[1, 2, 0, 0]] * 4
    assert second["actions_valid"].tolist() == [True] * 4 + [False] * 12
    assert not encode.encode(sample_of(plan, "bounce_1.mp4")).arrays["actions_valid"].any()


def test_a_broken_file_keeps_its_place_with_a_reason_and_the_others_are_untouched(broken_plan, cfg):
    encode = EncodeBatch(broken_plan, cfg)
    ids = np.array([0, 2, 4, PADDING])
    row = encode.encode_batch(0, 0, ids)
    batch = to_latent_batch(row)
    assert batch.sample_ids_B.tolist() == [0, 2, 4, -1]
    assert set(batch.reasons) == {2}
    assert "breaks.mp4" in batch.reasons[2]
    assert batch.video.valid_BT.any(dim=1).tolist() == [True, False, True, False]
    assert batch.audio.valid_BT.any(dim=1).tolist() == [True, False, True, False]
    assert not batch.video.latents[1].any()
    assert torch.equal(batch.video.latents[2], torch.from_numpy(encode.encode(4).arrays["video"]).float())


def test_latent_batch_has_fixed_shapes_float32_and_times_in_seconds(plan, cfg):
    encode = EncodeBatch(plan, cfg)
    buckets = [plan.bucket(plan.batch_at(n)[2]).kind for n in range(plan.num_batches_per_epoch)]
    rows = [
        encode({"global_index": index}) for index in (buckets.index("picture"), -1, buckets.index("sound"))
    ]
    full, empty, sound = map(to_latent_batch, rows)
    assert empty.sample_ids_B.tolist() == [-1] * 4
    assert (empty.epoch, empty.batch_id, empty.reasons) == (-1, -1, {})
    for batch in (full, empty):
        assert batch.video.latents.shape == (4, 4, 8, 8, 48)
        assert batch.audio.latents.shape == (4, 64, 32)
        assert batch.text_BN.shape == (4, 24)
        assert batch.actions_BFA.shape == (4, 16, 4)
        assert batch.video.latents.dtype == batch.audio.latents.dtype == torch.float32
        assert batch.video.time_s_T2.tolist() == [[0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1.0]]
        assert batch.audio.time_s_T2[-1].tolist() == [63 / 64, 1.0]
    assert full.video.valid_BT.any()
    assert not empty.video.valid_BT.any()
    assert sound.video.latents.shape == (4, 4, 2, 2, 48)  # one masked token a step
    assert sound.audio.latents.shape == (4, 64, 32)
    assert sound.audio.valid_BT[0].all()
    assert not sound.video.valid_BT.any()
    assert torch.equal(full.video.loss_mask_BT, full.video.valid_BT)


def test_cache_gives_the_same_arrays_as_decoding_and_no_longer_needs_the_file(
    broken_plan, clip_folder, tmp_path, cfg
):
    cached = EncodeBatch(broken_plan, with_cache(cfg, tmp_path / "cache"))
    decoded = EncodeBatch(broken_plan, cfg).encode(0)
    first, second = cached.encode(0), cached.encode(0)
    assert (first.was_cached, second.was_cached) == (False, True)
    assert_same(first.arrays, decoded.arrays)
    assert_same(second.arrays, decoded.arrays)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert list(map(str, files)) == list(cache_files(str(tmp_path / "cache")))  # one file, nothing partial
    assert len(files) == 1
    breaks = sample_of(broken_plan, "breaks.mp4")
    assert cached.encode(breaks).reason
    good_bytes = (clip_folder / "bounce_1.mp4").read_bytes()
    (tmp_path / "breaks.mp4").write_bytes(good_bytes)
    assert not cached.encode(breaks).reason  # a failure is never cached
    (tmp_path / "breaks.mp4").unlink()
    assert not cached.encode(breaks).reason


def test_a_damaged_cache_file_is_written_anew(plan, tmp_path, cfg):
    encode = EncodeBatch(plan, with_cache(cfg, tmp_path / "cache"))
    whole = encode.encode(0).arrays
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    again = encode.encode(0)
    assert not again.was_cached
    assert_same(again.arrays, whole)
    assert path.stat().st_size == size


def test_a_cache_that_cannot_be_written_is_reported_and_the_latents_are_still_there(plan, tmp_path, cfg):
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    clip = EncodeBatch(plan, with_cache(cfg, tmp_path / "cache")).encode(0)
    assert "cannot write the latent cache" in clip.cache_error
    assert clip.arrays["video_valid"].all()


def test_a_disk_that_fills_up_leaves_no_half_file_in_the_cache(plan, tmp_path, cfg):
    cfg = with_data(cfg, cache=str(tmp_path / "cache"), sandbox=False)  # whose memory counts as a file here
    encode = EncodeBatch(plan, cfg)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4096, hard)
    )  # a write past this fails halfway, as on a full disk
    try:
        clip = encode.encode(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write the latent cache" in clip.cache_error
    assert clip.arrays["video_valid"].all()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert not encode.encode(0).cache_error
    assert encode.encode(0).was_cached


def test_cache_name_follows_everything_that_the_latents_depend_on(plan, tmp_path, cfg):
    encode = EncodeBatch(plan, with_cache(cfg, tmp_path))
    cache, sample, own = encode.cache, plan.sample(0), encode.own
    names = {cache.uri(sample, own)}
    for change in ({"start_s": 0.25}, {"content_sha256": "other"}, {"valid_s": 0.5}, {"has_sound": False}):
        names.add(cache.uri(replace(sample, **change), own))
    for other in ({"size": (64, 128)}, {"video_steps": 8}, {"audio_steps": 128}):
        names.add(cache.uri(sample, replace(own, **other)))
    names.add(replace(cache, targets=[["target_dino", "0123"]]).uri(sample, own))
    assert len(names) == 9
    moved = replace(sample, uri="elsewhere.mp4", sample_id=7)
    assert cache.uri(moved, own) == cache.uri(sample, own)


def test_all_files_of_one_content_are_found_by_it(plan, tmp_path, cfg):
    encode = EncodeBatch(plan, with_cache(cfg, tmp_path / "cache"))
    assert encode.cache.files_of("0" * 64) == list(cache_files(str(tmp_path / "cache"))) == []
    ids = [
        sample_of(plan, "bounce_0.mp4"),
        sample_of(plan, "bounce_0.mp4", nth=1),
        sample_of(plan, "short.mp4"),
    ]
    written = [encode.encode(i).cached_bytes for i in ids]
    files = list(cache_files(str(tmp_path / "cache")))
    assert sum(Path(file).stat().st_size for file in files) == sum(written)
    samples = [plan.sample(i) for i in ids]
    own = {encode.cache.uri(sample, encode.own) for sample in samples[:2]}
    assert set(encode.cache.files_of(samples[0].content_sha256)) == own
    assert len(own) == 2
    assert {content_of(file) for file in files} == {sample.content_sha256 for sample in samples}
    with safe_open(files[0], "np") as file:
        assert file.metadata()["content_sha256"] == content_of(files[0])


def test_the_cache_may_lie_in_a_store(s3, plan, tmp_path, cfg):
    folder = f"s3://{s3.bucket}/cache/of latents"
    encode = EncodeBatch(plan, with_cache(cfg, folder))
    assert not encode.fill_cache(0).was_cached
    first = encode.encode(1)
    again = [encode.encode(i) for i in (0, 1)]
    assert [clip.was_cached for clip in (first, *again)] == [False, True, True]
    assert_same(again[1].arrays, first.arrays)
    assert encode.fill_cache(0) == ClipLatents({}, was_cached=True)
    assert len(list(cache_files(folder))) == 2
    missing = EncodeBatch(plan, with_cache(cfg, f"s3://{s3.bucket}-that-is-not-there/cache")).encode(0)
    assert "cannot write the latent cache" in missing.cache_error
    assert "no such bucket" in missing.cache_error
    assert missing.arrays["video_valid"].all()


@pytest.mark.media
def test_real_and_awkward_clips_are_encoded_or_quarantined_and_never_raise(media, tmp_path):
    cfg = RunConfig()
    index_sources(
        [str(media / "speech"), str(media / "derived"), str(media / "awkward")],
        out=str(tmp_path / "m.parquet"),
    )
    plan = make_plan(str(tmp_path / "m.parquet"), cfg)
    encode = EncodeBatch(plan, cfg)
    clips = {i: encode.encode(i) for i in range(plan.num_samples)}
    for i, clip in clips.items():
        usable = clip.arrays["video_valid"].any() or clip.arrays["audio_valid"].any()
        assert usable == (clip.reason == ""), plan.sample(i).uri
    speech = [clip for i, clip in clips.items() if "/speech/" in plan.sample(i).uri]
    assert len(speech) > 10
    assert all(clip.arrays["video_valid"].all() and clip.arrays["audio_valid"].all() for clip in speech)


def test_a_codec_for_another_rate_is_a_user_error(plan, cfg):
    other = cfg.model_copy(update={"data": cfg.data.model_copy(update={"sample_rate": 8000, "fps": 8})})
    with pytest.raises(UserError, match=r"data\.fps=8(.|\n)*data\.sample_rate=8000"):
        EncodeBatch(plan, other)


def test_held_out_batches_hold_held_out_clips_only(manifest, cfg):
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"held_out": 0.5})})
    plan = make_plan(str(manifest), cfg)
    batches = list(held_out_batches(plan, cfg, num_clips=100))
    ids = [i for batch in batches for i in batch.sample_ids_B.tolist() if i != PADDING]
    assert sorted(ids) == plan.held_out_ids.tolist()
    shapes = {tuple(batch.video.latents.shape[1:]) for batch in batches}
    assert len(shapes) == len({plan.sample(i).bucket for i in ids})
    assert {plan.sample(i).split for i in ids} == {"held_out"}
    assert len(list(held_out_batches(plan, cfg, num_clips=1))) == 1


@pytest.fixture
def with_targets(cfg, tmp_path):
    targets = (
        TargetConfig(name="dino", encoder=str(dino(tmp_path / "dino"))),
        TargetConfig(name="wav", encoder=str(wav2vec(tmp_path / "wav")), modality="audio"),
    )
    return with_data(cfg, targets=targets)


def test_features_of_frozen_encoders_travel_with_the_latents(broken_plan, with_targets):
    encode = EncodeBatch(broken_plan, with_targets)
    batch = to_latent_batch(encode.encode_batch(0, 0, np.array([0, 2, 4, PADDING])))
    assert set(batch.targets) == {"dino", "dino_valid", "wav", "wav_valid"}
    assert batch.targets["dino"].shape == (4, 4, 4, 4, 16)  # steps, rows and columns of tokens
    assert batch.targets["wav"].shape == (4, 64, 16)
    assert batch.targets["dino"].dtype == torch.float16
    for name in ("dino", "wav"):
        valid_BT = batch.targets[f"{name}_valid"]
        assert valid_BT.any(dim=1).tolist() == [True, False, True, False]
        assert valid_BT[0].all()
        assert not batch.targets[name][1].any()
        assert batch.targets[name][0].any()
    sample = broken_plan.sample(0)
    clip = decode_clip(sample.uri, start_s=0, end_s=1, fps=16, size=(64, 64), sample_rate=16000)
    dino_targets = encode.encoder.targets.pictures["target_dino"].encode(clip.video_THWC, [4] * 4, (4, 4))
    assert torch.equal(batch.targets["dino"][0], dino_targets.half())


def test_a_modality_that_is_absent_has_no_features(plan, with_targets):
    encode = EncodeBatch(plan, with_targets)
    silent, blind = (encode.encode(sample_of(plan, name)).arrays for name in ("muted.mp4", "no_picture.mp4"))
    assert silent["target_dino_valid"].all()
    assert not silent["target_wav_valid"].any()
    assert not silent["target_wav"].any()
    assert blind["target_wav_valid"].all()
    assert blind["target_dino"].shape == (4, 1, 1, 16)
    assert not blind["target_dino_valid"].any()


def test_features_come_out_of_the_cache_as_they_went_in(plan, with_targets, tmp_path):
    cached = with_cache(with_targets, tmp_path / "cache")
    first, again = (EncodeBatch(plan, cached).encode(0) for _ in range(2))
    assert (first.was_cached, again.was_cached) == (False, True)
    assert_same(again.arrays, first.arrays)
    assert again.arrays["target_dino"].any()
    bare = EncodeBatch(plan, with_data(cached, targets=()))
    assert not bare.encode(0).was_cached  # other targets, other files
    assert len(bare.cache.files_of(plan.sample(0).content_sha256)) == 2


def test_a_target_without_an_encoder_is_a_user_error_that_names_it(plan, cfg, tmp_path):
    missing = with_data(cfg, targets=(TargetConfig(name="dino", encoder=str(tmp_path / "none")),))
    with pytest.raises(UserError, match=rf"data\.targets: dino: {tmp_path}/none"):
        EncodeBatch(plan, missing)


def test_remote_media_and_members_of_tars_give_the_latents_of_local_files(s3, clip_folder, tmp_path, cfg):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("bounce_0.mp4", "bounce_0.txt", "bounce_1.mp4"):
            tar.add(clip_folder / name, name)
    s3.put("shard.tar", (tmp_path / "shard.tar").read_bytes())
    picture, sound = (
        s3.put(name, (clip_folder / name).read_bytes()) for name in ("no_sound.mp4", "no_picture.mp4")
    )
    rows = [
        {"video": s3.put("a/bounce 2.mp4", (clip_folder / "bounce_2.mp4").read_bytes())},
        {"video": picture, "audio": sound},
    ]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    index_sources([s3.uri("shard.tar"), str(tmp_path / "clips.jsonl")], out=str(tmp_path / "remote.parquet"))
    local = [
        *({"video": str(clip_folder / f"bounce_{n}.mp4")} for n in (0, 1, 2)),
        {"video": str(clip_folder / "no_sound.mp4"), "audio": str(clip_folder / "no_picture.mp4")},
    ]
    (tmp_path / "local.jsonl").write_text("\n".join(map(json.dumps, local)), "utf-8")
    index_sources([str(tmp_path / "local.jsonl")], out=str(tmp_path / "local.parquet"))
    plans = [make_plan(str(tmp_path / f"{name}.parquet"), cfg) for name in ("remote", "local")]
    assert plans[0].num_samples == plans[1].num_samples == 8
    made = [EncodeBatch(plan, cfg) for plan in plans]
    by_content = []
    for plan, encode in zip(plans, made, strict=True):
        clips = {}
        for i in range(plan.num_samples):
            sample = plan.sample(i)
            clips[sample.content_sha256, sample.start_s] = encode.encode(i)
        by_content.append(clips)
    assert by_content[0].keys() == by_content[1].keys()
    for key, clip in by_content[0].items():
        assert clip.reason == ""
        for name in ("video", "audio", "audio_valid", "video_valid"):
            assert np.array_equal(clip.arrays[name], by_content[1][key].arrays[name])
    gone = next(i for i in range(8) if plans[0].sample(i).uri.endswith("bounce 2.mp4"))
    uri = plans[0].sample(gone).uri
    s3.client.delete_object(Bucket=s3.bucket, Key="a/bounce 2.mp4")
    (tmp_path / "spool").rename(tmp_path / "lost")
    stores._keys.clear()
    stores._spool.cache_clear()
    reason = made[0].encode(gone).reason
    assert reason.startswith(uri)
    assert "no such" in reason
