"""Keep the language model's features of the course's texts: `python tools/embed.py` renews them.

It needs the package's extra `lm`, and leaves tutorial_lib/weights/minilm_texts.safetensors.xz.
"""

import safetensors.torch
import ship
import torch

from tutorial_lib.language_model import minilm
from tutorial_lib.pretrained import FOLDER
from tutorial_lib.wordings import course_texts

if __name__ == "__main__":
    model, split = minilm()
    rows = [model(split([text]))[0] for text in course_texts()]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    kept = {"features": torch.cat(rows).half(), "lengths": lengths}
    plain = FOLDER / "minilm_texts.safetensors"
    safetensors.torch.save_file(kept, plain)
    ship.pack(plain, plain.with_name(f"{plain.name}.xz"))
    ship.ship([])
