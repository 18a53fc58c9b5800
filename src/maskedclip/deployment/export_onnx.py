"""ONNX graphs of both towers, with the normalisation inside, for onnxruntime and whatever else reads ONNX."""

import importlib
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskedclip.deployment.export_towers import traced_parts
from maskedclip.deployment.exported import Exported
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing

OPSET = 20
EXTERNAL_BEYOND = 1.8e9
"""Bytes of weights from which they lie beside the graph: a protobuf file ends at 2 GB."""
_SMALLEST = 1024
"""Values of a tensor below which it stays float32 in a bfloat16 file: norms and biases."""


def write_onnx(folder: Path, model: MaskedCLIP, preprocessing: Preprocessing, precision: str) -> None:
    """Write image.onnx (uint8 `images` (B, 3, S, S)) and, of a model with texts, text.onnx; the batch is dynamic.

    Args:
        folder: exists.
        model: in evaluation mode.
        preprocessing: its normalisation goes inside.
        precision: `float32`; `bf16`, matrices stored in bfloat16 and computed with in float32, which onnxruntime's
            processor kernels can; `int8`, matrix products with int8 weights by channel and activations quantised on
            the fly, everything else in float32.

    Raises:
        UserError: the packages are missing.
    """
    onnx = package("onnx", folder)
    package("onnxscript", folder)
    for name, (module, example, inputs, outputs) in traced_parts(model, preprocessing).items():
        path = folder / f"{name}.onnx"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            plain = Path(scratch) / path.name
            _trace(module, example, inputs, outputs, path if precision == "float32" else plain)
            if precision == "int8":
                _quantise(plain, path, _is_large(module))
            elif precision == "bf16":
                _store_as_bfloat16(onnx, plain, path, _is_large(module))
        onnx.checker.check_model(str(path), full_check=True)


def package(name: str, where: Path) -> Any:
    """One of the packages of the extra `export`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{where}: needs the extra `export`: pip install 'maskedclip[export]' ({name})") from None


def _is_large(module: nn.Module) -> bool:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values()) > EXTERNAL_BEYOND


def _trace(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], path: Path) -> None:
    batch = torch.export.Dim.DYNAMIC
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                opset_version=OPSET,
                external_data=_is_large(module),
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=_is_large(module))
    finally:
        logging.disable(before)


def _quantise(source: Path, target: Path, large: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        prepared = source.with_name(f"prepared_{source.name}")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, save_as_external_data=large)
        quantize_dynamic(
            str(prepared),
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=False,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
    finally:
        logging.disable(before)


def _store_as_bfloat16(onnx: Any, source: Path, target: Path, large: bool) -> None:
    """Each large float32 weight becomes a bfloat16 one and a cast, which onnxruntime does once, at loading."""
    model = onnx.load(str(source))
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or np.prod(weight.dims) < _SMALLEST:
            continue
        name, values = weight.name, onnx.numpy_helper.to_array(weight)
        halved = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy()
        weight.CopyFrom(
            onnx.helper.make_tensor(
                f"{name}.bf16", onnx.TensorProto.BFLOAT16, list(values.shape), halved.tobytes(), raw=True
            )
        )
        casts.append(onnx.helper.make_node("Cast", [f"{name}.bf16"], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    onnx.save(model, str(target), save_as_external_data=large)


class OnnxExport(Exported):
    """What onnxruntime makes of a folder, on the processor."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        runtime = package("onnxruntime", folder)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._image = self._session(runtime, "image", options)
        if self.has_text:
            self._text, self._tokenizer = self._session(runtime, "text", options), self.tokenizer()

    def _session(self, runtime: Any, name: str, options: Any) -> Any:
        return runtime.InferenceSession(str(self.folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])

    def encode_images(self, images: Tensor) -> dict[str, np.ndarray]:
        """See `Exported`."""
        names = [output.name for output in self._image.get_outputs()]
        return dict(zip(names, self._image.run(names, {"images": images.numpy()}), strict=True))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `Exported`."""
        if not self.has_text:
            return super().encode_text(texts)
        ids, mask = self._tokenizer(texts)
        return self._text.run(["text"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
