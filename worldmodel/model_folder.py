"""Names of the files in an exported model's folder. Imports without torch."""

from __future__ import annotations

INDEX_FILE = "model_index.json"
FACTS_FILE = "facts.json"  # what the model card says, for programs
WEIGHTS = "diffusion_pytorch_model.safetensors"
