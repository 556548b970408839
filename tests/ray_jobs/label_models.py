"""Small models of real architectures, made on the spot, and speech of tones of which every time is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

RATE_HZ = 16000
LETTERS = "abcdefgh"
FRAME = 320  # samples of one frame of the tone reader
CAPTION_WORDS = ("a", "ball", "man", "red", "blue", "runs", "jumps", "over", "the", "grass", "hits", "wall")
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_PICTURES = _SMALL | {"image_size": 32, "patch_size": 8}
_ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
_SIZE = {"height": 32, "width": 32}


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<image>"]
    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*special, *CAPTION_WORDS])}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        mask_token="[MASK]",
        additional_special_tokens=["<image>"],
    )


def save_blip(folder: Path) -> Path:
    import transformers as t

    torch.manual_seed(0)
    words = word_tokenizer()
    text = _SMALL | _ENDS | {"vocab_size": len(words), "encoder_hidden_size": 32, "projection_dim": 16}
    config = t.BlipConfig(
        text_config=text | {"sep_token_id": 3, "max_position_embeddings": 128},
        vision_config=_PICTURES,
        projection_dim=16,
    )
    t.BlipForConditionalGeneration(config).save_pretrained(folder)
    t.BlipProcessor(t.BlipImageProcessor(size=_SIZE), words).save_pretrained(folder)
    return folder


def save_git(folder: Path, *, frames: int | None = None) -> Path:
    """frames: of a video that it reads at once."""
    import transformers as t

    torch.manual_seed(0)
    words = word_tokenizer()
    config = t.GitConfig(
        vision_config=_PICTURES,
        vocab_size=len(words),
        max_position_embeddings=128,
        num_image_with_embedding=frames,
        **_SMALL,
        **_ENDS,
    )
    t.GitForCausalLM(config).save_pretrained(folder)
    pictures = t.CLIPImageProcessor(size=_SIZE, crop_size=_SIZE)
    t.GitProcessor(pictures, words).save_pretrained(folder)
    return folder


def save_vision_encoder_decoder(folder: Path) -> Path:
    import transformers as t

    torch.manual_seed(0)
    words = word_tokenizer()
    decoder = t.GPT2Config(
        vocab_size=len(words),
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=128,
        add_cross_attention=True,
        **_ENDS,
    )
    model = t.VisionEncoderDecoderModel(
        encoder=t.ViTModel(t.ViTConfig(**_PICTURES)), decoder=t.GPT2LMHeadModel(decoder)
    )
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model.generation_config.suppress_tokens = [0, 1, 2, 4, 5]  # or it would write nothing else
    model.generation_config._from_model_config = False
    model.save_pretrained(folder)
    t.ViTImageProcessor(size=_SIZE).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    """A language model that sees: it is asked in words, with a chat template."""
    import transformers as t

    torch.manual_seed(0)
    words = word_tokenizer()
    text = t.LlamaConfig(vocab_size=len(words), max_position_embeddings=512, **_SMALL, **_ENDS)
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(projection_dim=32, **_PICTURES | {"num_hidden_layers": 2}),
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    t.LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}"
    )
    t.LlavaProcessor(
        t.CLIPImageProcessor(size=_SIZE, crop_size=_SIZE),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def save_whisper(folder: Path) -> Path:
    """Multilingual (en, de), bytes as tokens."""
    import transformers as t
    from tokenizers.pre_tokenizers import ByteLevel

    torch.manual_seed(0)
    words = t.WhisperTokenizer(
        vocab={letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))},
        merges=[],
        unk_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )
    names = (
        "endoftext startoftranscript en de translate transcribe startoflm startofprev nospeech notimestamps"
    )
    words.add_tokens([f"<|{name}|>" for name in names.split()], special_tokens=True)
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in names.split()}
    model = t.WhisperForConditionalGeneration(
        t.WhisperConfig(
            vocab_size=len(words) + 1501,  # and a token for each time in 30 s
            encoder_layers=1,
            decoder_layers=1,
            d_model=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_target_positions=64,
            decoder_start_token_id=ids["startoftranscript"],
            **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), ids["endoftext"]),
        )
    )
    facts = {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": ids["en"], "<|de|>": ids["de"]},
        "task_to_id": {"transcribe": ids["transcribe"], "translate": ids["translate"]},
        "no_timestamps_token_id": ids["notimestamps"],
        "suppress_tokens": [*range(128), *range(len(words), len(words) + 1501)],
        "begin_suppress_tokens": [],
        "_from_model_config": False,
    }
    for name, value in facts.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    t.WhisperProcessor(t.WhisperFeatureExtractor(), words).save_pretrained(folder)
    return folder


def letter_tokenizer(folder: Path) -> Any:
    import transformers as t

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {"<pad>": 0, "<unk>": 1, "|": 2} | {letter: i + 3 for i, letter in enumerate(LETTERS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return t.Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"),
        unk_token="<unk>",
        pad_token="<pad>",
        word_delimiter_token="|",
        bos_token=None,
        eos_token=None,
    )


def tone_reader(letters: Any) -> Any:
    """Wav2Vec2 with a small front end of the usual stride, 20 ms."""
    import transformers as t

    config = t.Wav2Vec2Config(
        vocab_size=len(letters),
        conv_dim=(64, 32, 32),
        conv_kernel=(40, 16, 8),
        conv_stride=(10, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
        pad_token_id=0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        **_SMALL,
    )
    return t.Wav2Vec2ForCTC(config)


def save_wav2vec2(folder: Path, *, train_steps: int = 0) -> Path:
    """train_steps: of reading speech of tones; 0 leaves it random."""
    import transformers as t

    torch.manual_seed(0)
    letters = letter_tokenizer(folder)
    model = tone_reader(letters)
    if train_steps:
        _train(model, steps=train_steps)
    model.save_pretrained(folder)
    t.Wav2Vec2Processor(t.Wav2Vec2FeatureExtractor(), letters).save_pretrained(folder)
    return folder


def save_wav2vec2_bert(folder: Path) -> Path:
    """A CTC model that reads a spectrogram."""
    import transformers as t

    torch.manual_seed(0)
    letters = letter_tokenizer(folder)
    config = t.Wav2Vec2BertConfig(
        vocab_size=len(letters), conv_depthwise_kernel_size=3, pad_token_id=0, **_SMALL
    )
    t.Wav2Vec2BertForCTC(config).save_pretrained(folder)
    t.Wav2Vec2BertProcessor(t.SeamlessM4TFeatureExtractor(), letters).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class ToneSpeech:
    """words: (text, start_s, end_s). labels_T: token of each frame of the tone reader."""

    sound_N: np.ndarray
    words: tuple[tuple[str, float, float], ...]
    labels_T: np.ndarray

    @property
    def text(self) -> str:
        return " ".join(word for word, _, _ in self.words)


def tone_speech(rng: np.random.Generator, *, seconds: float) -> ToneSpeech:
    """Words of letters, each letter a tone, with pauses between the words and noise over all."""
    num = round(seconds * RATE_HZ)
    sound_N, letter_N = 0.003 * rng.standard_normal(num), np.zeros(num, dtype=np.int64)
    at, words = round(rng.uniform(0.1, 0.3) * RATE_HZ), []
    while at < num - 1.1 * RATE_HZ:
        word, start = "", at
        for letter in rng.permutation(len(LETTERS))[: rng.integers(2, 5)]:
            length = round(rng.uniform(0.08, 0.16) * RATE_HZ)
            hz = 350 + 280 * letter
            sound_N[at : at + length] += 0.2 * np.sin(2 * np.pi * hz * np.arange(length) / RATE_HZ)
            letter_N[at : at + length] = letter + 3
            word, at = word + LETTERS[letter], at + length
        words.append((word, start / RATE_HZ, at / RATE_HZ))
        at += round(rng.uniform(0.05, 0.15) * RATE_HZ)
        breath = slice(at, at + round(0.1 * RATE_HZ))  # the delimiter between words is a hiss
        sound_N[breath] += 0.1 * rng.standard_normal(breath.stop - at)
        letter_N[breath] = 2
        at = breath.stop + round(rng.uniform(0.05, 0.15) * RATE_HZ)
    centres_T = np.arange((num - FRAME) // FRAME) * FRAME + FRAME // 2
    return ToneSpeech(sound_N.astype(np.float32), tuple(words), letter_N[centres_T])


def _train(model: nn.Module, *, steps: int, clips: int = 4, seconds: float = 2.0) -> None:
    """On the token of every frame: a model that CTC trains would tell times only roughly."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        said = [tone_speech(rng, seconds=seconds) for _ in range(clips)]
        sound_BN = torch.from_numpy(np.stack([s.sound_N for s in said]))
        sound_BN = (sound_BN - sound_BN.mean(1, keepdim=True)) / sound_BN.std(1, keepdim=True)
        logits_BTV = model(sound_BN).logits
        labels_BT = torch.from_numpy(np.stack([s.labels_T for s in said]))
        length = min(logits_BTV.shape[1], labels_BT.shape[1])
        loss = nn.functional.cross_entropy(logits_BTV[:, :length].transpose(1, 2), labels_BT[:, :length])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def write_clip_with_sound(path: Path, sound_N: np.ndarray, *, sound_start_s: float = 0.0) -> Path:
    """A moving picture from time 0 and, from sound_start_s on, lossless sound."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        audio = container.add_stream("flac", rate=RATE_HZ, layout="mono")
        assert isinstance(audio, av.AudioStream)
        for i in range(round((sound_start_s + len(sound_N) / RATE_HZ) * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 9 * i % 256, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        pcm_N = (sound_N * 32767).astype(np.int16)
        for start in range(0, len(pcm_N), 1024):
            block = av.AudioFrame.from_ndarray(pcm_N[None, start : start + 1024], format="s16", layout="mono")
            block.sample_rate, block.time_base = RATE_HZ, Fraction(1, RATE_HZ)
            block.pts = start + round(sound_start_s * RATE_HZ)
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    return path
