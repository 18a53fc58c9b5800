"""torch.compile for the modules that carry the work, given up with a printed reason where it does not work here."""

from collections.abc import Callable
from typing import Any

from torch import nn

from maskedclip.models.decoder import Decoder
from maskedclip.objectives.pretraining import PretrainingObjective


def compile_modules(objective: PretrainingObjective) -> list[nn.Module]:
    """Compile encoder, bridge, text encoder and decoders in place: weights keep their names, shapes are static."""
    model = objective.model
    modules: list[nn.Module] = [model.encoder, model.bridge]
    if model.text_encoder is not None:
        modules.append(model.text_encoder.bert)  # type: ignore[arg-type]
    decoders = [getattr(term, "decoder", None) for term in objective.terms.values()]
    modules += [decoder for decoder in decoders if isinstance(decoder, Decoder)]  # others meet texts of many lengths
    for module in modules:
        module.compile(dynamic=False if module is not getattr(model.text_encoder, "bert", None) else None)
    return modules


def undo(modules: list[nn.Module]) -> None:
    """Run the modules eagerly again."""
    for module in modules:
        module._compiled_call_impl = None


def is_compiler_fault(error: BaseException) -> bool:
    """Whether an error came from the compiler: no C++ or Triton here, or code that it cannot translate."""
    kind = type(error).__module__
    return kind.startswith(("torch._dynamo", "torch._inductor", "torch.fx", "triton"))


def first_call(act: Callable[[], Any], modules: list[nn.Module], say: Callable[[str], None]) -> Any:
    """Do the first step; where the compiler fails, say why and do it eagerly."""
    try:
        return act()
    except Exception as error:
        if not is_compiler_fault(error):
            raise
        undo(modules)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        say(f"training.compile: not possible here ({' '.join(lines[:2])[:200]}); going on without it")
        return act()
