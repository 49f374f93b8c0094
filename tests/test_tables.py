"""Tables that people write: read correctly, or refused in one line that names the place. No wrong figure is read."""
import io
import json
import random
import unicodedata

import numpy as np
import pandas
import pytest

import evaluate
from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.data.labels import read_groups, read_labels, read_scores

NAMES = ["J4GQm9j0JZ0.003", "José.001", "a b (1).002", "x;y.004", "plain"]
SCORES = np.round(np.random.default_rng(0).uniform(0, 1, (len(NAMES), 5)), 4)
CHALLENGE = ["VideoName", "ValueExtraversion", "ValueAgreeableness", "ValueConscientiousness", "ValueNeurotisicm",
             "ValueOpenness"]


def cell(text, separator, quote_all):
    quoted = quote_all or any(mark in text for mark in (separator, '"', "\n"))
    return '"' + text.replace('"', '""') + '"' if quoted else text


def well_meant_table(generator):
    """Return (bytes of a file, {clip: scores}): the same scores as some spreadsheet or program would write them."""
    separator = generator.choice([",", ";", "\t", "|"])
    comma = separator != "," and generator.random() < 0.4
    quote_all = generator.random() < 0.2
    order = generator.sample(range(5), 5)
    if generator.random() < 0.25:
        spelling = dict(zip(["clip", "extraversion", "agreeableness", "conscientiousness", "neuroticism", "openness"],
                            CHALLENGE))
    else:
        change = generator.choice([str.lower, str.upper, str.title])
        blank = generator.choice(["", " ", "\u00a0"])
        spelling = {name: blank + change(name) + blank for name in ("clip", *TRAITS)}
    columns = ["clip", *(TRAITS[place] for place in order)]
    extra = generator.choice([[], ["notes"], ["interview", "notes"]])
    empty_at_end = generator.choice([0, 0, 1, 3])
    header = [spelling[name] for name in columns] + extra + [""] * empty_at_end
    lines = [header]
    for name, scores in zip(NAMES, SCORES):
        digits = generator.choice(["{:.4f}", "{:.6f}", "{:g}", "{:.4e}"])
        texts = [digits.format(scores[place]) for place in order]
        if generator.random() < 0.3:
            texts = [text.replace("0.", ".", 1) if text.startswith("0.") else text for text in texts]
        if comma:
            texts = [text.replace(".", ",") for text in texts]
        name = generator.choice(["", "train/", "C:\\clips\\"]) + name + generator.choice(["", ".mp4", ".MP4", ".avi"])
        name = unicodedata.normalize(generator.choice(["NFC", "NFD"]), name)
        lines.append([name, *(generator.choice(["", " "]) + text for text in texts),
                      *(["a note, with; marks"] * len(extra)), *[""] * empty_at_end])
        if generator.random() < 0.1:
            lines.append([""] * generator.choice([0, 1, len(header)]))
    end = generator.choice(["\n", "\r\n"])
    text = end.join(separator.join(cell(text, separator, quote_all) for text in line) for line in lines)
    text += generator.choice(["", end, end * 3])
    if generator.random() < 0.1:
        text = f"sep={separator}{end}{text}"
    encoding = generator.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    return text.encode(encoding), dict(zip(NAMES, SCORES))


def test_well_meant_tables_are_read_correctly(tmp_path):
    generator = random.Random(1)
    for number in range(200):
        data, expected = well_meant_table(generator)
        path = tmp_path / f"{number}.csv"
        path.write_bytes(data)
        scores = read_scores(path)
        assert sorted(scores.index) == sorted(expected), data.decode("latin1")
        for clip, values in expected.items():
            assert np.abs(scores.loc[clip].to_numpy() - values).max() < 1e-4, data.decode("latin1")


def test_mutated_tables_are_read_correctly_or_refused(tmp_path, long_run):
    """One cell, line or byte is damaged. Nothing but the numbers that now stand there may be read."""
    generator = random.Random(2)
    count = 5000 if long_run else 1000
    refused = 0
    path = tmp_path / "mutated.csv"
    for _ in range(count):
        rows = [["clip", *TRAITS], *([name, *map(str, scores)] for name, scores in zip(NAMES, SCORES))]
        kind = generator.choice(["lose", "add", "double", "word", "scale", "byte", "swap", "header", "truncate",
                                 "quote"])
        row = generator.randrange(1, len(rows))
        place = generator.randrange(1, 6)
        if kind == "lose":
            del rows[generator.randrange(len(rows))][place]
        elif kind == "add":
            rows[generator.randrange(len(rows))].insert(place, "0.5")
        elif kind == "double":
            rows.append(list(rows[row]))
        elif kind == "word":
            rows[row][place] = generator.choice(["", "high", "NaN", "None", "inf", "1_0", "0x1", "50%", "0.5.1",
                                                 "=0.5", "0 5", "−0.5", "1e999"])
        elif kind == "scale":
            rows[row][place] = str(100 * float(rows[row][place]) + 2)
        elif kind == "swap":
            rows[row], rows[0] = rows[0], rows[row]
        elif kind == "header":
            rows[0][place] = generator.choice([rows[0][place - 1], "", "trait", "Value" + rows[0][place]])
        text = "\n".join(",".join(cells) for cells in rows) + "\n"
        data = text.encode()
        if kind == "byte":
            where = generator.randrange(len(data))
            data = data[:where] + generator.randbytes(1) + data[where + 1:]
        elif kind == "truncate":
            data = data[:generator.randrange(len(data))]
        elif kind == "quote":
            where = generator.randrange(len(data))
            data = data[:where] + b'"' + data[where:]
        path.write_bytes(data)
        try:
            scores = read_scores(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
            continue
        # What was read stands in the file: every row's numbers, in the columns' order, in a line of this clip.
        lines = {line.split(",")[0].strip('" '): line for line in data.decode().split("\n")}
        for clip, values in scores.iterrows():
            assert any(clip.strip('" ') in unicodedata.normalize("NFC", name) for name in lines), (kind, clip, data)
            line = next(line for name, line in lines.items() if clip.strip('" ') in unicodedata.normalize("NFC", name))
            names = data.decode().split("\n")[0].split(",")
            header = [name.strip('" ').lower().removeprefix("value") for name in names]
            for trait in TRAITS:
                text = line.split(",")[header.index(trait)].strip('" ')
                assert float(text) == values[trait], (kind, data)
    print(f"{count} mutated tables: {refused} refused")
    assert refused > count / 3


@pytest.mark.parametrize("text, complaint", [
    ("clip,group\n", "contains no clip"),
    ("", "it is empty"),
    ("clip;group\na;x\na.mp4;y\n", "the clip a is listed twice, in line 2 as a and in line 3 as a.mp4"),
    ("name,group\na,x\n", "no column `clip`"),
    ("clip,group,Group\na,x,y\n", "two columns are called group"),
    ("clip,group\n,x\n", "line 2 has an empty clip name"),
    ("clip,group\na,x,y\n", "line 2 has 3 cells, the header 2"),
])
def test_wrong_groups_are_named(tmp_path, text, complaint):
    path = tmp_path / "groups.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_groups(path)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_groups_named_like_missing_values_are_groups(tmp_path):
    path = tmp_path / "groups.csv"
    names = ("None", "NA", "nan", "null", "N/A")
    path.write_text("VideoName|Group\n" + "".join(f"{name}.mp4|{name}\n" for name in names) + "x|\n")
    groups = read_groups(path)["group"]
    # clip_name takes what stands before a slash for a folder.
    assert sorted(groups) == sorted(["None", "NA", "nan", "null", "N/A"]) and "x" not in groups.index


def test_speakers_of_a_table(tmp_path):
    path = tmp_path / "labels.csv"
    rows = {"x.1": " anna ", "x.2": "anna", "y.1": "", "z.w.7": "  ", "z.w.8": "None"}
    path.write_text("clip," + ",".join(TRAITS) + ",Speaker\n"
                    + "".join(f"{clip},.5,.5,.5,.5,.5,{speaker}\n" for clip, speaker in rows.items()))
    _, speakers = read_labels(path)
    assert speakers.to_dict() == {"x.1": "anna", "x.2": "anna", "y.1": "y", "z.w.7": "z.w", "z.w.8": "None"}


@pytest.mark.parametrize("numbers, complaint", [
    (["50", "60", "70", "80", "90"], "outside [0, 1]"),
    (["0,5", "0.5", "0.5", "0.5", "0.5"], "has a decimal comma, but line 2"),
    (["0.5", "0.5", "3.5", "0.5", "0.5"], "extraversion: 3.5 is outside"),
])
def test_other_scales_and_mixed_numbers_are_refused(tmp_path, numbers, complaint):
    path = tmp_path / "predictions.csv"
    path.write_text("clip;" + ";".join(TRAITS) + "\na;" + ";".join(numbers) + "\n")
    with pytest.raises(UserError) as caught:
        read_scores(path)
    assert complaint in str(caught.value)


def test_challenge_submission_and_groups_by_the_real_command(run, tmp_path):
    """A submission as the challenge's winners published it, groups with names that pandas takes for missing values,
    files that are not there."""
    clips = [f"clip{number:02}.{number % 3:03}" for number in range(40)]
    generator = np.random.default_rng(1)
    labels = pandas.DataFrame(generator.uniform(0.2, 0.8, (40, 5)), columns=list(TRAITS),
                              index=pandas.Index(clips, name="clip"))
    labels.to_csv(tmp_path / "labels.csv")
    traits = ["extraversion", "agreeableness", "conscientiousness", "neuroticism", "openness"]
    submission = (labels + 0.05).rename(columns=dict(zip(traits, CHALLENGE[1:])))[CHALLENGE[1:]]
    submission.index = submission.index + ".mp4"
    submission.rename_axis("VideoName").to_csv(tmp_path / "mine.csv", encoding="utf-16", sep="\t")
    groups = io.StringIO("Clip;Group\n" + "".join(f"{clip}.mp4;{'None' if number % 2 else 'glasses'}\n"
                                                  for number, clip in enumerate(clips[:-4])))
    (tmp_path / "groups.csv").write_text(groups.getvalue())
    status, _, errors = run(evaluate, "--predictions", "mine.csv", "--labels", "labels.csv", "--group-by", "groups.csv")
    assert status == 0, errors
    metrics = json.loads((tmp_path / "mine_evaluation" / "metrics.json").read_text())
    assert metrics["traits"]["neuroticism"]["accuracy"] == pytest.approx(0.95)
    assert {name: group["mean"]["clips"] for name, group in metrics["groups"].items()} == {"None": 18, "glasses": 18}
    assert "4 clips of 40 in no group" in errors

    for arguments, complaint in ((["--predictions", "missing.csv"], "missing.csv: no such file"),
                                 (["--predictions", tmp_path], "is a folder"),
                                 (["--predictions", "mine.csv", "--group-by", "missing.csv"],
                                  "missing.csv: no such file"),
                                 (["--predictions", "mine.csv", "--compare", "nobody.csv"],
                                  "nobody.csv: no such file")):
        status, _, errors = run(evaluate, *arguments, "--labels", "labels.csv")
        assert status == 2 and complaint in errors and len(errors.splitlines()) == 1, errors
