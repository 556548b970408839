"""Small random encoders of pictures and sound, saved as transformers loads them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

PICTURES = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


def save_pictures(folder: Path, model, **settings) -> Path:
    model.save_pretrained(str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps({**PICTURES, **settings}))
    return folder


def dino(folder: Path, kind: str = "Dinov2") -> Path:
    """Registers too, where the kind has them."""
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    config = getattr(transformers, f"{kind}Config")(**shape, image_size=32)
    model = getattr(transformers, f"{kind}Model")(config)
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    return save_pictures(folder, model, **sizes)


def swin(folder: Path) -> Path:
    """Hierarchical: the patches of 64 x 96 pixels are merged twice, to 4 x 6 tokens."""
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(0)
    shape = {"embed_dim": 4, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "window_size": 2, "patch_size": 4}
    config = SwinConfig(**shape, image_size=[64, 96])
    return save_pictures(folder, SwinModel(config), size={"height": 64, "width": 96})


def videomae(folder: Path) -> Path:
    """Takes clips, not pictures."""
    from transformers import VideoMAEConfig, VideoMAEModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = VideoMAEModel(VideoMAEConfig(**shape, image_size=32, patch_size=8, num_frames=2))
    return save_pictures(folder, model, size={"shortest_edge": 32})


def masked(folder: Path) -> Path:
    """Drops three quarters of the patches, at random."""
    from transformers import ViTMAEConfig, ViTMAEModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTMAEModel(ViTMAEConfig(**shape, image_size=32, patch_size=8))
    return save_pictures(folder, model, size={"height": 32, "width": 32})


def clip(folder: Path) -> Path:
    """Of two modalities, of which the vision part is used."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = shape | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=shape | {"vocab_size": 50}, vision_config=vision)
    return save_pictures(folder, CLIPModel(config), size={"height": 32, "width": 32})


def wav2vec(folder: Path, kind: str = "Wav2Vec2") -> Path:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(80, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    getattr(transformers, f"{kind}Model")(config).save_pretrained(str(folder))
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(str(folder))
    return folder


def whisper(folder: Path) -> Path:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    tokens = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = WhisperConfig(d_model=16, **heads, **layers, **tokens, decoder_start_token_id=1)
    WhisperModel(config).save_pretrained(str(folder))
    WhisperFeatureExtractor(feature_size=8).save_pretrained(str(folder))
    return folder


def spectrogram(folder: Path) -> Path:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_length=256,
        num_mel_bins=32,
    )
    ASTModel(config).save_pretrained(str(folder))
    ASTFeatureExtractor(max_length=256, num_mel_bins=32).save_pretrained(str(folder))
    return folder
