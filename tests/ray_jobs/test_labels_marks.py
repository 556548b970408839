"""Whose label it is: what people wrote stays, whatever the models say and in whatever order."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_jobs.labels.marks import (
    COLUMNS,
    FIELDS,
    LOW_CONFIDENCE,
    LeftOut,
    Made,
    is_automatic,
    is_human,
    settled,
    wanted_fields,
    with_outcome,
)
from ray_jobs.labels.models import LabelModel, LabelModels

CAPTIONER = LabelModel("c", "captioner", "c:1")
RECOGNIZER = LabelModel("r", "seq2seq", "r:1")
ALIGNER = LabelModel("a", "ctc", "a:1")
ALL = LabelModels(CAPTIONER, RECOGNIZER, ALIGNER)
BY = {"caption": "c:1", "transcript": "r:1", "speech": "a:1"}


def row(**given) -> dict:
    empty = {"caption": "", "transcript": "", "speech_json": "", "labels_json": ""}
    return empty | {"has_video": True, "has_sound": True} | given


def cues(*words, timed=True) -> str:
    return json.dumps(
        [{"text": w} | ({"start": float(i), "end": i + 0.5} if timed else {}) for i, w in enumerate(words)]
    )


def wanted(of, models=ALL, *, redo=False, least=0.3) -> set[str]:
    return set(wanted_fields(of, models, redo=redo, min_confidence=least))


def made(*words) -> dict:
    """All three fields, as models make them."""
    text = " ".join(words)
    return {
        "caption": Made("a ball", 0.9, "c:1"),
        "transcript": Made(text, 0.8, "r:1"),
        "speech": Made(cues(*words), 0.7, "a:1"),
    }


texts = st.sampled_from(["", "a dog", "it says no"])
speeches = st.sampled_from(
    ["", "[]", cues("it", "says", "no"), cues("it", "says no", timed=False), cues("other", timed=False)]
)
outcomes = st.fixed_dictionaries(
    {},
    optional={
        "caption": st.sampled_from(
            [Made("made", 0.9, "c:1"), LeftOut("an empty caption"), LeftOut(LOW_CONFIDENCE)]
        ),
        "transcript": st.sampled_from(
            [Made("made up", 0.9, "r:1"), LeftOut("no speech"), LeftOut("the model failed", is_failure=True)]
        ),
        "speech": st.sampled_from(
            [
                Made(cues("made", "up"), 0.9, "a:1"),
                Made(cues("it", "says", "no"), 0.9, "a:1"),
                LeftOut("never"),
            ]
        ),
    },
)


def said(of) -> list[str]:
    return " ".join(cue["text"] for cue in json.loads(of["speech_json"] or "[]")).split()


@example(
    "",
    "",
    cues("it", "says no", timed=False),
    [{"transcript": Made("made up", 0.9, "r:1"), "speech": Made(cues("made", "up"), 0.9, "a:1")}],
)
@example(
    "",
    "",
    cues("it", "says no", timed=False),
    [
        {"speech": Made(cues("it", "says", "no"), 0.9, "a:1")},
        {"speech": Made(cues("made", "up"), 0.9, "a:1"), "transcript": Made("made up", 0.9, "r:1")},
    ],
)
@given(texts, texts, speeches, st.lists(outcomes, max_size=4))
def test_what_people_wrote_is_the_same_after_any_outcomes(caption, transcript, speech, several):
    before = row(caption=caption, transcript=transcript, speech_json=speech)
    after = before
    for outcome in several:
        after = settled(with_outcome(after, outcome, BY))
    if caption:
        assert after["caption"] == caption
    if transcript:
        assert after["transcript"] == transcript
    if speech and '"start"' in speech:
        assert after["speech_json"] == speech
    if speech:
        assert said(after) == said(before)
    marked = json.loads(after["labels_json"] or "{}")
    for field in FIELDS:
        if before[COLUMNS[field]] and field != "speech":
            assert field not in marked


@given(texts, texts, speeches, st.booleans(), st.sampled_from([ALL, LabelModels(recognizer=RECOGNIZER)]))
def test_nothing_that_people_wrote_is_wanted_but_times_for_their_words(
    caption, transcript, speech, redo, models
):
    of = row(caption=caption, transcript=transcript, speech_json=speech)
    found = wanted(of, models, redo=redo)
    assert not (caption and "caption" in found)
    assert not ((transcript or speech) and "transcript" in found)
    assert not (("start" in speech or speech == "[]") and "speech" in found and not transcript)


def test_a_clip_without_labels_gets_all_three_and_a_second_run_wants_none():
    assert wanted(row()) == {"caption", "transcript", "speech"}
    after = with_outcome(row(), made("hello", "you"), BY)
    assert (after["caption"], after["transcript"], said(after)) == ("a ball", "hello you", ["hello", "you"])
    assert all(is_automatic(after, field) and not is_human(after, field) for field in FIELDS)
    marks = json.loads(after["labels_json"])
    assert {name: marks["caption"][name] for name in ("by", "confidence", "automatic")} == {
        "by": "c:1",
        "confidence": 0.9,
        "automatic": True,
    }
    assert wanted(after) == set()
    assert wanted(after, redo=True) == {"caption", "transcript", "speech"}


def test_a_silent_clip_and_one_without_picture_want_what_they_can_have():
    assert wanted(row(has_sound=False)) == {"caption"}
    assert wanted(row(has_video=False)) == {"transcript", "speech"}


def test_an_empty_list_of_cues_says_that_nobody_speaks():
    assert wanted(row(speech_json="[]")) == {"caption"}


def test_a_label_that_somebody_changed_or_emptied_is_theirs():
    after = with_outcome(row(), made("hello"), BY)
    corrected = after | {"caption": "a red ball", "transcript": ""}
    assert is_human(corrected, "caption")
    assert is_human(corrected, "transcript")
    assert wanted(settled(corrected), redo=True).isdisjoint({"caption", "transcript"})
    again = with_outcome(settled(corrected), made("hello"), BY)
    assert (again["caption"], again["transcript"]) == ("a red ball", "")


def test_times_of_a_transcript_that_somebody_corrected_are_dropped_and_made_anew():
    after = with_outcome(row(), made("hello"), BY) | {"transcript": "yellow"}
    assert settled(after)["speech_json"] == ""
    assert wanted(settled(after)) == {"speech"}
    timed = with_outcome(settled(after), {"speech": Made(cues("yellow"), 0.9, "a:1")}, BY)
    assert (timed["transcript"], said(timed)) == ("yellow", ["yellow"])


def test_a_written_transcript_gets_times_and_stays_of_people():
    of = row(transcript="Hello, you!")
    assert wanted(of, LabelModels(recognizer=RECOGNIZER)) == set()  # nobody can tell when
    assert wanted(of) == {"caption", "speech"}
    after = with_outcome(of, {"speech": Made(cues("Hello,", "you!"), 0.9, "a:1")}, BY)
    assert is_human(after, "transcript")
    assert is_automatic(after, "speech")


def test_cues_without_times_get_them_but_no_other_words():
    of = row(speech_json=json.dumps([{"speaker": "ann", "text": "it says"}, {"text": "no"}]))
    assert "speech" in wanted(of)
    other = with_outcome(of, {"speech": Made(cues("made", "up"), 0.9, "a:1")}, BY)
    assert other == of
    after = with_outcome(of, {"speech": Made(cues("it", "says", "no"), 0.9, "a:1")}, BY)
    assert said(after) == ["it", "says", "no"]
    redone = with_outcome(after, {"speech": LeftOut("words cannot be timed")}, BY)
    assert said(redone) == ["it", "says", "no"]  # the words are of people: only the times are gone
    assert "start" not in redone["speech_json"]


def test_what_a_model_could_not_make_is_not_tried_again_by_the_same_model():
    after = with_outcome(row(), {"transcript": LeftOut("no speech")}, BY)
    assert "transcript" not in wanted(after)
    assert "transcript" in wanted(after, redo=True)
    other = LabelModels(recognizer=LabelModel("other", "seq2seq", "other:1"))
    assert "transcript" in wanted(after, other)


def test_a_label_of_low_confidence_is_tried_again_when_less_is_asked():
    after = with_outcome(row(), {"caption": LeftOut(LOW_CONFIDENCE, confidence=0.2)}, BY)
    assert "caption" not in wanted(after, least=0.3)
    assert "caption" in wanted(after, least=0.1)


def test_a_failure_leaves_what_was_there_and_is_tried_again():
    after = with_outcome(row(), made("hello"), BY)
    failed = {field: LeftOut("the model failed", is_failure=True) for field in FIELDS}
    assert with_outcome(after, failed, BY) == after
    assert wanted(with_outcome(row(), failed, BY)) == {"caption", "transcript", "speech"}


def test_redone_labels_that_are_left_out_are_gone():
    after = with_outcome(row(), made("hello"), BY)
    redone = with_outcome(after, {"transcript": LeftOut("no speech")}, BY)
    assert (redone["transcript"], redone["speech_json"]) == ("", "")
    assert redone["caption"] == "a ball"


@pytest.mark.parametrize("broken", ["{oops", "[]", '{"caption": {}}'])
def test_marks_that_nobody_can_read_mark_nothing(broken):
    of = row(caption="a dog", labels_json=broken)
    assert is_human(of, "caption")
    assert with_outcome(of, made("hello"), BY)["caption"] == "a dog"
