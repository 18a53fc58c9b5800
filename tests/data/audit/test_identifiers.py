"""What may identify a patient is flagged, ordinary findings are not, and nothing is printed that need not be."""

import pytest

from maskedclip.data.audit.identifiers import counts_by_kind, find_identifiers, identifiers, mask


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Seen by Dr. Smith.", "name"),
        ("Mrs Anna Müller, right eye", "name"),
        ("Patient: Jones, Mary. Drusen.", "name"),
        ("patient John Doe", "name"),
        ("Name: Wong", "name"),
        ("on 12/03/2019", "date"),
        ("2019-03-12", "date"),
        ("12.03.19", "date"),
        ("5 March 2020", "date"),
        ("March 5th, 2020", "date"),
        ("write to a.b@clinic.example.org", "e-mail address"),
        ("call (555) 123-4567", "telephone number"),
        ("tel. 0161 496 0000", "telephone number"),
        ("+44 161 496 0000", "telephone number"),
        ("MRN 12345678", "record number"),
        ("Accession number: AB-1234-567", "record number"),
        ("SSN 123-45-6789", "record number"),
        ("lives at 221 Baker Street", "address"),
    ],
)
def test_find_identifiers__finds(text: str, kind: str) -> None:
    assert [found[0] for found in find_identifiers(text)] == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "Moderate non proliferative retinopathy, epiretinal membrane.",
        "Cup-to-disc ratio 0.7; grade 2/3; 20/40 vision; 1-2 microaneurysms.",
        "The patient has glaucoma. Patient presents with drusen. Patient Denies pain",
        "Cardiothoracic ratio of 16.2/24.7, nodule of 10.5 mm at T10-11",
        "Drusen may be seen in 2 quadrants of 4, case of AMD",
        "Stable since 2015.",
    ],
)
def test_find_identifiers__leaves_findings_alone(text: str) -> None:
    assert list(find_identifiers(text)) == []


def test_identifiers__masked_and_counted() -> None:
    hits = identifiers(["Dr. Smith, 12/03/2019", None, "", "Drusen.", "Dr. Smith, 12/03/2019"])
    assert [(hit.row, hit.kind) for hit in hits] == [(0, "name"), (0, "date"), (4, "name"), (4, "date")]
    assert counts_by_kind(hits) == {"name": 2, "date": 2}
    assert all("Smith" not in hit.hint and "2019" not in hit.hint for hit in hits)
    assert mask("Dr. Smith") == "Dr. •••••"


def test_find_identifiers__long_text_takes_no_time() -> None:
    assert list(find_identifiers("a" * 50_000 + " 1" * 20_000 + "(" * 5_000)) == []
