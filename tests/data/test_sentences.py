"""Reports are cut into sentences where a reader would, and a step's choice is the key's alone."""

from maskedclip.data.sentences import choose_sentences, split_sentences

REPORT = "Disc and macula are normal. Several haemorrhages; C/D 0.4. Dr. Lee saw 2.5 mm drusen.\nLeft eye"
PARTS = ["Disc and macula are normal.", "Several haemorrhages", "C/D 0.4.", "Dr. Lee saw 2.5 mm drusen.", "Left eye"]


def test_split_sentences__as_a_reader_would() -> None:
    assert split_sentences(REPORT) == PARTS
    assert split_sentences("moderate retinopathy, drusen") == ["moderate retinopathy, drusen"]
    assert split_sentences("  ") == []


def test_choose_sentences__modes() -> None:
    assert choose_sentences(REPORT, "all", 1) == REPORT
    ones = {choose_sentences(REPORT, "one", key) for key in range(200)}
    assert ones == set(PARTS)
    for key in range(50):
        some = choose_sentences(REPORT, "some", key)
        places = [some.find(part) for part in PARTS if part in some]
        assert places == sorted(places)
        assert some
        assert some == choose_sentences(REPORT, "some", key)
    assert choose_sentences("normal fundus", "some", 3) == "normal fundus"
