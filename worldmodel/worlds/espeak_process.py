"""One utterance by libespeak-ng in a process of its own. Standard library only: run by path, `python -I -S`.

espeak-ng keeps random state between utterances, so only a fresh process repeats bit-identically. Standard
input is one JSON request; standard output is one line of JSON (rate and events), then 16-bit native PCM.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

_SYNCHRONOUS = 2
_PHONEME_EVENTS = 1
_UTF8 = 1
_RATE_PARAMETER, _PITCH_PARAMETER = 1, 3
_LIST_END, _WORD, _PHONEME, _END = 0, 1, 7, 5


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):  # espeak_EVENT of speak_lib.h
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def speak(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """`request`: library, data, text, voice, words_per_minute, pitch (0 to 100)."""
    library = ctypes.CDLL(request["library"])
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, request["data"].encode(), _PHONEME_EVENTS)
    if rate <= 0:
        raise SystemExit(f"espeak-ng found no data in {request['data']}")
    if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        raise SystemExit(f"espeak-ng has no voice {request['voice']!r}")
    library.espeak_SetParameter(_RATE_PARAMETER, request["words_per_minute"], 0)
    library.espeak_SetParameter(_PITCH_PARAMETER, request["pitch"], 0)
    pcm = bytearray()
    events: list[dict[str, Any]] = []

    @_Callback
    def collect(wave: Any, num_samples: int, event: Any) -> int:
        if wave and num_samples > 0:
            pcm.extend(ctypes.string_at(wave, 2 * num_samples))
        index = 0
        while event[index].type != _LIST_END:
            one = event[index]
            if one.type in (_WORD, _PHONEME, _END):
                kind = {_WORD: "word", _PHONEME: "phoneme", _END: "end"}[one.type]
                name = bytes(one.id.string).decode("utf-8", "replace") if one.type == _PHONEME else ""
                events.append(
                    {
                        "kind": kind,
                        "sample": one.sample,
                        "ms": one.audio_position_ms,
                        "name": name,
                        "text": [one.text_position, one.length],
                    }
                )
            index += 1
        return 0

    library.espeak_SetSynthCallback(collect)
    text = request["text"].encode()
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return {"rate": rate, "events": events}, bytes(pcm)


if __name__ == "__main__":
    head, wave_bytes = speak(json.load(sys.stdin))
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + wave_bytes)
