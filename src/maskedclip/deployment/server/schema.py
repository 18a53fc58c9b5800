"""The shapes of requests and answers, as OpenAPI shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answered(BaseModel):
    """Numbers are finite, fields are fixed."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class ErrorDetail(Answered):
    """What went wrong."""

    code: Annotated[str, Field(description="One word for programs.", examples=["too_large"])]
    message: Annotated[
        str, Field(description="A sentence for people.", examples=["the file is larger than this server takes (32 MB)"])
    ]
    request: Annotated[str, Field(description="Of this request, as in the server's log.", examples=["9f1c3a70b2d4"])]


class Error(Answered):
    """Every answer with a status of 400 or above."""

    error: ErrorDetail


class Size(Answered):
    """In pixels, upright."""

    width: int
    height: int


class Region(Answered):
    """The square that the model saw, in px of the photograph; the model pads with black what lies beyond it."""

    left: float
    top: float
    width: float
    height: float


class PhotographInfo(Answered):
    """What an upload was and what was done to it."""

    name: Annotated[str, Field(description="The client's file name, without folders.", examples=["eye.jpg"])]
    kind: Annotated[str, Field(description="By content, not by name.", examples=["JPEG"])]
    size: Size
    region: Region
    notes: Annotated[list[str], Field(examples=[["the fundus field was cropped", "resized to 112 x 112 px"]])]


class Finding(Answered):
    """One label's answer."""

    label: Annotated[str, Field(examples=["glaucoma"])]
    probability: Annotated[
        float | None, Field(description="0 to 1, only where calibrated or a distribution; else null.", examples=[0.82])
    ]
    score: Annotated[float, Field(description="Orders photographs; no probability.", examples=[0.31])]
    found: Annotated[bool, Field(description="Whether the label is called present.")]
    certain: Annotated[bool, Field(description="False where the model abstains.")]


class FindingsOf(Answered):
    """Findings of one photograph, most probable first."""

    photograph: PhotographInfo
    findings: list[Finding]
    abstained: Annotated[bool, Field(description="No finding is certain.")]


class Findings(Answered):
    """Findings of all photographs, in their order."""

    model: str
    kind: Annotated[
        Literal["exclusive", "independent"],
        Field(description="Exclusive: just one holds, probabilities sum to 1.  Independent: each holds or not."),
    ]
    calibrated: Annotated[bool, Field(description="Whether probabilities were fitted on validation rows.")]
    results: list[FindingsOf]
    notice: Annotated[str, Field(examples=["research use; not a diagnosis"])]


class HeatMap(Answered):
    """Where in a photograph a text is."""

    model: str
    text: str
    contrast: Annotated[bool, Field(description="Whether the map is less that of a normal fundus.")]
    photograph: PhotographInfo
    grid: Annotated[list[list[float]], Field(description="Cosines by patch, rows from the top, over `region`.")]
    low: Annotated[float, Field(description="The cosine that is drawn as nothing.")]
    high: Annotated[float, Field(description="The cosine that is drawn strongest.")]
    image: Annotated[
        str,
        Field(
            description="PNG in base64, RGBA, to be laid over the photograph; at most 1,024 px; empty where only the "
            "grid was asked for."
        ),
    ]
    notice: str


class SimilarCase(Answered):
    """One case of the index."""

    id: str
    score: Annotated[float, Field(description="Cosine, -1 to 1.", examples=[0.74])]
    report: Annotated[str | None, Field(examples=["moderate non proliferative retinopathy"])]
    columns: Annotated[dict[str, Any], Field(description="What the server was told to show of the index.")]
    thumbnail: Annotated[str | None, Field(description="JPEG in base64; null where the picture is not at hand.")]


class SimilarCases(Answered):
    """Cases of the index, nearest first."""

    model: str
    cases: list[SimilarCase]
    searched: Annotated[int, Field(description="Cases in the index.")]
    notice: str


class FeaturesOf(Answered):
    """Features of one photograph, by output: `encoder` (D), `bridge` (D), `projected` (E, unit length)."""

    photograph: PhotographInfo
    features: dict[str, list[float]]


class Features(Answered):
    """Features of all photographs; each number is a float32, written so that it is read back bit for bit."""

    model: str
    fingerprint: str
    results: list[FeaturesOf]


class Limits(Answered):
    """What this server takes."""

    file_bytes: int
    files: int
    pixels: int
    queue: int
    batch: int
    seconds: float


class ModelCard(Answered):
    """What is known of one model."""

    name: str
    fingerprint: Annotated[str, Field(description="Of weights and preprocessing: what a feature depends on.")]
    texts: Annotated[bool, Field(description="Whether it reads texts: needed for maps and text search.")]
    outputs: dict[str, int]
    input_size: Annotated[int, Field(description="Side of its input, px.")]
    crop: str
    labels: list[str]
    kind: Literal["exclusive", "independent"] | None
    calibrated: Annotated[bool, Field(description="Whether all its probabilities were fitted on validation rows.")]
    abstains: Annotated[float, Field(description="Share of like photographs that it leaves undecided, 0 to 1.")]
    answers_from: Annotated[str, Field(examples=["zero-shot sentences", "a saved head"])]
    trained_on: Annotated[dict[str, Any], Field(examples=[{"paired_images": 3210, "unpaired_images": 1907}])]
    measured: Annotated[list[str], Field(description="Lines of its evaluation, with 95 % intervals.")]
    warnings: list[str]


class About(Answered):
    """The server: models, index, limits."""

    version: str
    models: list[ModelCard]
    index: Annotated[int | None, Field(description="Cases that can be searched; null without an index.")]
    index_model: Annotated[str | None, Field(description="The model whose features the index holds.")]
    filters: Annotated[list[str], Field(description="Columns that a filter may use.")]
    keeps_uploads: bool
    limits: Limits
    notice: str


class Health(Answered):
    """Whether the server lives, or is ready."""

    status: Annotated[str, Field(examples=["ok"])]
