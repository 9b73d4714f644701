"""What the terminal shows at the end."""

import io

from rich.console import Console

from fedtandem.reports.tables import print_study, print_summary


def printed(show, folder, width=110):
    console = Console(file=io.StringIO(), width=width)
    show(folder, console)
    return console.file.getvalue()


def test_a_run_ends_with_before_after_and_control(run_folder):
    text = printed(print_summary, run_folder)
    row = next(line for line in text.splitlines() if "at-1-step" in line)
    assert row.split() == [
        "server",
        "at-1-step",
        "exact",
        "match",
        "0.0",
        "%",
        "93.1",
        "%",
        "0.4",
        "%",
        "+92.7",
    ]
    assert "server harmed" in text
    assert "750 updates" in text


def test_an_unfinished_run_has_a_table_too(unfinished_run):
    assert "have not run yet" in printed(print_summary, unfinished_run)


def test_a_study_prints_what_it_set_out_to_compare(study_folder):
    text = printed(print_study, study_folder, width=140)
    assert "Of 6 comparisons" in text
    assert "18 more, shown without a claim" in text
