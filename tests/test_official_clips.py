"""The challenge's clips, known by name, size and checksum."""
import hashlib

import pandas

import dataset
from first_impressions.data import official_clips


def test_the_table_holds_all_clips():
    table = official_clips.official_clips()
    assert table["split"].value_counts().to_dict() == {"train": 6000, "valid": 2000, "test": 2000}
    assert table.index.is_unique and official_clips.TABLE.stat().st_size <= 200_000
    splits = official_clips.official_split_of(["x/-2qsCrkXdWs.001.mp4", "--Ymqszjv54.001", "anna_1", "nan"])
    assert splits.to_list() == [table["split"].get("-2qsCrkXdWs.001", ""), "train", "", ""]


def test_real_clips_have_the_official_bytes(chalearn_dir, run_script):
    result = run_script("dataset.py", chalearn_dir / "clips", "--verify", "--out", "list.csv", check=False)
    assert result.returncode == 1 and "train: 12 of 6000 official clips; 5988 missing\n" in result.stdout


def test_what_differs_is_named(run, tmp_path, monkeypatch):
    content = {clip: clip.encode() * 100_000 for clip in ("a.000", "b.000", "c.000", "d.000", "e.000")}
    rows = [(clip, "valid" if clip == "e.000" else "train", len(data), hashlib.sha256(data).hexdigest()[:12])
            for clip, data in content.items()]
    table = pandas.DataFrame(rows, columns=["clip", "split", "bytes", "sha256"]).set_index("clip")
    monkeypatch.setattr(official_clips, "official_clips", lambda: table)
    videos = tmp_path / "data" / "train" / "videos"
    videos.mkdir(parents=True)
    content["b.000"] = content["b.000"][:-1]
    content["c.000"] = bytes(len(content["c.000"]))
    for clip in ("a.000", "b.000", "c.000", "e.000"):
        (videos / f"{clip}.mp4").write_bytes(content[clip])
    (videos / "mine.mp4").touch()
    status, output, errors = run(dataset, "data", "--verify")
    assert status == 1 and "valid: data/valid/videos is not there" in output, errors
    assert output.startswith("train: 1 of 4 official clips; 1 truncated; 1 not the official bytes; 1 missing; ")
    differing = pandas.read_csv(tmp_path / "data" / "differing_clips.csv", index_col="clip")
    assert differing["problem"].to_dict() == {
        "b.000": "truncated: 499999 of 500000 bytes", "c.000": "not the official bytes: SHA-256 differs",
        "d.000": "missing", "e.000": "of another split: valid", "mine": "not an official clip"}

    table = table.loc[["a.000"]]
    for path in videos.glob("[bcem]*"):
        path.unlink()
    status, output, _ = run(dataset, "data", "--verify")
    assert status == 0 and "train: 1 of 1 official clips\n" in output and "All of them" in output
    assert run(dataset, "data", "--verify", "--out", f"{__file__}/list.csv")[0] == 2
    assert "contains no folder train/videos" in run(dataset, "data/train", "--verify")[2]
    assert run(dataset, "dat", "--verify")[2] == "dat: no such folder\n"
