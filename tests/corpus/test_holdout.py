from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.corpus.holdout import content_hash, is_held_out


def test_the_share_holds_and_a_larger_share_holds_out_what_a_smaller_did() -> None:
    hashes = [content_hash(b"document %d" % number) for number in range(20_000)]
    small = {name for name in hashes if is_held_out(name, 0.01)}
    large = {name for name in hashes if is_held_out(name, 0.05)}
    # Within 4 standard deviations of 200 and 1000.
    assert 144 <= len(small) <= 256
    assert 877 <= len(large) <= 1123
    assert small < large


@given(text=st.binary())
def test_nothing_or_everything(text: bytes) -> None:
    assert not is_held_out(content_hash(text), 0.0)
    assert is_held_out(content_hash(text), 1.0)


def test_the_decision_never_changes() -> None:
    assert content_hash(b"hello").hex() == "a7b6eda801e5347d"
    assert [number for number in range(40) if is_held_out(content_hash(b"%d" % number), 0.1)] == [21, 28]
