"""The line that says where a page's numbers come from."""

from crosscal_book.chapter import stamp


def test_the_stamp_says_where_numbers_come_from(results):
    made = stamp(results)
    for word in ("quick", "made-up", "cpu", "0123456789", "torch 2.13.0"):
        assert word in str(made)
    assert made.run_ids == results.run_ids
