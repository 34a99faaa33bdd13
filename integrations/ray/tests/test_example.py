"""The example, with fewer passages and less training."""

import importlib.util
from pathlib import Path


def test_a_question_and_its_sources(cluster, tmp_path, capsys):
    path = Path(__file__).parents[1] / "examples" / "rag.py"
    assert len(path.read_text().splitlines()) <= 60
    spec = importlib.util.spec_from_file_location("rag", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(example.QUESTION, 300, 0.01, tmp_path)
    printed = capsys.readouterr().out
    assert "300 rows added to 'docs'" in printed
    sources = printed.partition(example.QUESTION)[2].splitlines()[1:]
    assert len(sources) == 3
