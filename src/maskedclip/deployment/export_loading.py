"""The loading code of each format, as the model card prints it; the tests run it from the card."""

_PICTURE = """# A photograph that is prepared as "Pictures" below says.
picture = Image.open("eye.jpg").convert("RGB")"""

_TIMM = """import timm
import torch
from PIL import Image

{picture}
model = timm.create_model("local-dir:.", pretrained=True).eval()    # "local-dir:" and this folder
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
with torch.inference_mode():
    features = model(transform(picture)[None])    # (1, {width}): {meaning}
"""

_HUGGINGFACE = """import os

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel{tokenizer_import}

{picture}
folder = os.path.abspath(".")    # this folder
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)    # runs modeling_maskedclip.py
with torch.inference_mode():
    output = model(**processor(images=picture, return_tensors="pt"))
    features = output.encoder    # (1, {encoder}), the default feature{texts}
"""

_HUGGINGFACE_TEXTS = """
    image = output.image_embeds    # (1, {embed}), unit length, comparable with texts
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    tokens = tokenizer(["glaucoma", "normal fundus"], padding=True, truncation=True, return_tensors="pt")
    cosines = image @ model.get_text_features(**tokens).T"""

_NATIVE = """
# The encoder alone, without any code from this folder:
encoder = AutoModel.from_pretrained(os.path.join(folder, "encoder"), dtype=torch.float32)    # {native}
with torch.inference_mode():
    tokens = encoder(**processor(images=picture, return_tensors="pt")).last_hidden_state
    features = tokens[:, {prefix}:].mean(dim=1)    # the same feature: the mean of the patch tokens
"""

_OPEN_CLIP = """import os

import open_clip
import torch
from PIL import Image

{picture}
folder = os.path.abspath(".")    # this folder
model, _, transform = open_clip.create_model_and_transforms("local-dir:" + folder)
tokenizer = open_clip.get_tokenizer("local-dir:" + folder)
with torch.inference_mode():
    image = model.eval().encode_image(transform(picture)[None], normalize=True)    # (1, {embed})
    text = model.encode_text(tokenizer(["glaucoma", "normal fundus"]), normalize=True)
cosines = image @ text.T
"""

_ONNX = """import numpy as np
import onnxruntime
from PIL import Image

{picture}
pixels = np.asarray(picture.resize(({size}, {size}), Image.Resampling.BICUBIC))    # uint8; the graph normalises
session = onnxruntime.InferenceSession("image.onnx")
names = [output.name for output in session.get_outputs()]    # {outputs}
features = dict(zip(names, session.run(names, {{"images": pixels.transpose(2, 0, 1)[None]}})))
"""

_ONNX_TEXTS = """
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")    # pads and cuts to {length} tokens by itself
encoded = tokenizer.encode_batch(["glaucoma", "normal fundus"])
tokens = {{
    "input_ids": np.array([entry.ids for entry in encoded], np.int64),
    "attention_mask": np.array([entry.attention_mask for entry in encoded], np.int64),
}}
text = onnxruntime.InferenceSession("text.onnx").run(["text"], tokens)[0]
cosines = features["projected"] @ text.T
"""

_TORCH = """import numpy as np
import torch
from PIL import Image

{picture}
pixels = np.array(picture.resize(({size}, {size}), Image.Resampling.BICUBIC))    # uint8; the program normalises
image = torch.export.load("image.pt2").module()    # can run code: load only packages that you trust
features = image(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())    # {outputs}
"""

_TORCH_TEXTS = """
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")    # pads and cuts to {length} tokens by itself
encoded = tokenizer.encode_batch(["glaucoma", "normal fundus"])
ids = torch.tensor([entry.ids for entry in encoded])
mask = torch.tensor([entry.attention_mask for entry in encoded])
cosines = features["projected"] @ torch.export.load("text.pt2").module()(ids, mask)["text"].T
"""

_MEANINGS = {
    "encoder": "the mean of the patch tokens of f, the default feature",
    "bridge": "the mean of the patch tokens of g(f)",
    "projected": "in the space of the texts, before it is brought to unit length",
}


def loading_code(about: dict) -> str:
    """Python that loads an export from inside its folder and encodes `eye.jpg`, by what its export.json says."""
    kind, widths = about["format"], about["widths"]
    with_text = about["text_length"] > 0
    outputs = ", ".join(widths)
    values = {"picture": _PICTURE, "size": about["size"], "outputs": outputs, "length": about["text_length"]}
    values |= {"encoder": widths.get("encoder"), "embed": widths.get("projected")}
    if kind == "timm":
        output = about["output"]
        return _TIMM.format(**values, width=widths[output], meaning=_MEANINGS[output])
    if kind == "open_clip":
        return _OPEN_CLIP.format(**values)
    if kind == "huggingface":
        texts = _HUGGINGFACE_TEXTS.format(**values) if with_text else ""
        tokenizer = ", AutoTokenizer" if with_text else ""
        code = _HUGGINGFACE.format(**values, texts=texts, tokenizer_import=tokenizer)
        native = about.get("native")
        return code + (_NATIVE.format(native=native["class"], prefix=native["prefix"]) if native else "")
    first, second = (_ONNX, _ONNX_TEXTS) if kind == "onnx" else (_TORCH, _TORCH_TEXTS)
    return first.format(**values) + (second.format(**values) if with_text else "")
