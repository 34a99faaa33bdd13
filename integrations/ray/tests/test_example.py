"""The example, with fewer passages, a smaller codec and less training."""

import functools
import importlib.util
from pathlib import Path

import rqmoe_store as rqs


def test_a_question_and_its_sources(cluster, tmp_path, capsys, monkeypatch):
    path = Path(__file__).parents[1] / "examples" / "rag.py"
    assert len(path.read_text().splitlines()) <= 60
    spec = importlib.util.spec_from_file_location("rag", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    small = functools.partial(rqs.CodecConfig, codebook_size=16, num_experts=2, hidden_dim=8)
    monkeypatch.setattr(rqs, "CodecConfig", small)
    example.main(example.QUESTION, 300, 0.01, tmp_path)
    printed = capsys.readouterr().out
    assert "300 rows added to 'docs'" in printed
    sources = printed.partition(example.QUESTION)[2].splitlines()[1:]
    assert len(sources) == 3
