"""`k2 demo`: a newcomer's first minute, twice in a row."""

from pathlib import Path

from support.running import Run


def test_demo_works_twice_in_a_row_and_its_suggestion_finds_rows(run: Run, home: Path) -> None:
    results = [run(["demo", "--seconds", "1"]) for _ in range(2)]
    for result in results:
        assert result.exit_code == 0, result.stderr
        assert "0 rejects, 0 missing, 0 duplicates" in result.stderr
        assert "k2 query trades --symbol BTCUSDT" in result.stderr
        assert "┤" in result.stdout  # the chart
        for word in ("BTCUSDT", "ETHUSDT", "quotes", "trades"):
            assert word in result.stdout
    assert (home / "demo" / "catalog.db").is_file()
    assert not (home / "catalog.db").exists()
    suggested = "query trades --symbol BTCUSDT --start -15m --limit 10"
    assert f"k2 {suggested} --home {home / 'demo'}\n" in results[-1].stderr
    found = run([*suggested.split(), "--home", str(home / "demo")])
    assert len(found.stdout.splitlines()) == 11
