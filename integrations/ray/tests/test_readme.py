"""The code of the README runs, block after block, with a smaller codec."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_code(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", str(tmp_path / "runs"))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        small = block.replace("CodecConfig(", "CodecConfig(codebook_size=16, num_experts=2, hidden_dim=8, ")
        exec(compile(small, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "2,000 rows added to 'docs'" in printed
    assert "1 of 1 pieces had been ingested before" in printed
    assert "100 rows added to 'docs'" in printed
    assert names["table"].count_rows() == 2100
