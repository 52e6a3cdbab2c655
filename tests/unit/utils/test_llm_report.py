"""
The texts for operators that are more than a table.
"""

import llm_report

ONE, TWO, THREE = (f"2026-01-01T00:00:00.00000000{number}Z" for number in (1, 2, 3))


def test_unseen_leaves_out_what_was_shown():
    shown = {}
    assert llm_report.unseen("a", [f"{ONE} one", f"{TWO} two"], shown) == ["one", "two"]
    assert llm_report.unseen("a", [f"{TWO} two", f"{THREE} three"], shown) == ["three"]
    assert llm_report.unseen("a", [f"{TWO} two", f"{THREE} three"], shown) == []
    assert llm_report.unseen("b", [f"{ONE} one"], shown) == ["one"]
    assert shown == {"a": THREE, "b": ONE}


def test_unseen_keeps_the_pieces_of_a_line_together():
    shown = {"a": ONE}
    said = [f"{ONE} 10 %", "20 %", f"{TWO} 30 %", "40 %"]
    assert llm_report.unseen("a", said, shown) == ["30 %", "40 %"]


def test_unseen_of_two_streams_that_were_written_at_once():
    shown = {}
    llm_report.unseen("a", [f"{THREE} three", f"{TWO} two"], shown)
    assert llm_report.unseen("a", [f"{THREE} three"], shown) == []
