import llm_catalogue
import llm_size
import pytest


@pytest.mark.parametrize(
    ("count", "exact", "rounded"),
    [
        (0, "0", "0"),
        (1023, "1023", "1023"),
        (512 * 1024**2, "512m", "512m"),
        (1100 * 1024**2, "1100m", "1.07g"),
        (3 * 1024**3, "3g", "3g"),
        (2 * 1024**4, "2t", "2t"),
        (1024**3 + 1, "1073741825", "1g"),
    ],
)
def test_sizes(count, exact, rounded):
    assert llm_size.exact(count) == exact
    assert llm_size.rounded(count) == rounded


@pytest.mark.parametrize("text", ["16k", "512m", "1100m", "2g", "3t"])
def test_exact_of_what_the_pillar_says(text):
    assert llm_size.exact(llm_catalogue.size(text)) == text


def test_rounded_of_a_speed():
    assert llm_size.rounded(99.6) == "100"
