"""Small random autoencoders of the kinds that diffusers and transformers load."""

from __future__ import annotations


def wan():
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def ltx2():
    from diffusers import AutoencoderKLLTX2Video

    return AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 16, 32, 64),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
    )


def cosmos():
    from diffusers import AutoencoderKLCosmos

    return AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(16, 16, 16, 16),
        decode_block_out_channels=(16, 16, 16, 16),
        attention_resolutions=(),
        resolution=32,
        num_layers=1,
        latents_mean=None,
        latents_std=None,
    )


def image():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )


def oobleck():
    from diffusers import AutoencoderOobleck

    return AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4, 5],
        channel_multiples=[1, 1, 1],
        decoder_channels=8,
        decoder_input_channels=4,
        sampling_rate=16000,
    )


def dac():
    from transformers import DacConfig, DacModel

    return DacModel(
        DacConfig(
            encoder_hidden_size=8, downsampling_ratios=[2, 5, 5, 5], decoder_hidden_size=64, n_codebooks=2
        )
    )


def encodec():
    from transformers import EncodecConfig, EncodecModel

    return EncodecModel(
        EncodecConfig(
            sampling_rate=16000,
            hidden_size=12,
            num_filters=4,
            upsampling_ratios=[5, 5, 5, 2],
            codebook_dim=12,
        )
    )
