import pytest

from megatron_cpt.config.errors import BadInput, Fault, refuse

SHORT = Fault("a = 1", "should be 2.", "Raise it.")
LONG = Fault("b = 9", "should be 2.", "Lower it.")


def test_a_fault_reads_as_value_rule_remedy() -> None:
    assert str(BadInput(SHORT)) == "a = 1: should be 2. Raise it."


def test_several_faults_are_listed() -> None:
    assert str(BadInput(SHORT, LONG)) == "- a = 1: should be 2. Raise it.\n- b = 9: should be 2. Lower it."


def test_refuse_raises_all_or_nothing() -> None:
    refuse([])
    with pytest.raises(BadInput) as raised:
        refuse([SHORT, LONG])
    assert raised.value.faults == (SHORT, LONG)
