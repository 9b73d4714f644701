"""Which model exactly: a name with a hash over its weights and its vocabulary."""

import hashlib
from typing import Any

import torch


def fingerprint(name: str, model: Any, vocabulary: str) -> str:
    """Two loads of the same weights and vocabulary have the same one, wherever the folder lies.

    Args:
        name: shown in front, its last part only: no one's folders are told to others.
        model: a torch module.
        vocabulary: a hash of its tokenizer.
    """
    whole = hashlib.blake2b(vocabulary.encode(), digest_size=8)
    for key, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            whole.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1)
            whole.update(raw.view(torch.uint8).numpy().data)
    return f"{name.rstrip('/').rpartition('/')[2].removeprefix('embedded:')}:{whole.hexdigest()}"
