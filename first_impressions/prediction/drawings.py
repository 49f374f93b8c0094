"""Pictures of scores, uint8 RGB: the annotated frame with its bars, heat maps, the scores over the time of a clip."""
import cv2
import numpy as np
import pandas

from first_impressions.common.constants import COLOURS, FACE_SIZE, TRAITS
from first_impressions.networks.network import PersonalityNetwork
from first_impressions.prediction.saliency import explain_chips
from first_impressions.prediction.scoring import FileScores, KeptPicture
from first_impressions.prediction.tables import high_means_calm

WHITE, GREY = (255, 255, 255), (40, 40, 40)
PERSON_HEIGHT, NOTES_HEIGHT, PANEL_WIDTH = 170, 70, 420     # in pixels, beside a picture of at most SMALL_HEIGHT
SMALL_HEIGHT = 360          # beside higher ones all is drawn up to twice as large
CAPTIONS_HEIGHT = 56        # pixels below heat maps of FACE_SIZE
MOST_POINTS = 120           # in a plot over time; of more faces, neighbours are averaged
PLOT_COLOURS = {trait: tuple(np.array(colour) / 255) for trait, colour in COLOURS.items()}


def _figure(width, height, scale=1.0, **options):
    """Return a matplotlib Figure of this many pixels times scale, with text of 14 pixels times scale."""
    from matplotlib.figure import Figure  # here, since it takes a second

    return Figure(figsize=((width + 0.1) / 100, (height + 0.1) / 100), dpi=100 * scale, **options)


def _picture_of(figure):
    """Return a matplotlib Figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def draw_boxes(picture: KeptPicture, numbered: bool) -> np.ndarray:
    """Return the picture with a box around each face, and the person's number if that is asked for."""
    image = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    thickness = max(1, round(image.shape[0] / 240))
    for person, (left, top, right, bottom) in picture.boxes.items():
        for colour, width in ((WHITE, 3 * thickness), (GREY, thickness)):
            cv2.rectangle(image, (left, top), (right, bottom), colour, width)
        for colour, width in ((GREY, 4 * thickness), (WHITE, 2 * thickness)) if numbered else ():
            cv2.putText(image, str(person), (left + 4 * thickness, bottom - 5 * thickness), cv2.FONT_HERSHEY_SIMPLEX,
                        0.6 * thickness, colour, width, cv2.LINE_AA)
    return image


def annotate(picture: KeptPicture, people: list[dict]) -> np.ndarray:
    """Return a picture with a box around each face and, at its side, where they hide nothing, the bars of each person.

    people: rows of tables.ALL_COLUMNS. A whisker on a bar is the interval, the number behind it the percentile.
    """
    image = draw_boxes(picture, len(people) > 1)
    height = PERSON_HEIGHT * len(people) + NOTES_HEIGHT
    figure = _figure(PANEL_WIDTH, height, min(2, max(1, image.shape[0] / max(SMALL_HEIGHT, height))),
                     layout="constrained")
    figure.get_layout_engine().set(rect=(0.02, 0.02, 0.96, 0.96))
    for axes, row in zip(figure.subplots(len(people), squeeze=False)[:, 0], people):
        scores, low, high, percentiles = ([row.get(f"{kind}{trait}") for trait in TRAITS]
                                          for kind in ("", "low_", "high_", "percentile_"))
        labels = [f"{score:.2f}" + ("" if percentile is None else f"   {percentile:.0f} %")
                  for score, percentile in zip(scores, percentiles)]
        axes.bar_label(axes.barh(TRAITS, 1, 0.65, color="0.88"), labels, padding=6)
        whiskers = None if low[0] is None else np.abs(np.array([low, high]) - scores)
        axes.barh(TRAITS, scores, 0.65, xerr=whiskers, capsize=3, color=PLOT_COLOURS.values())
        axes.set_title(f"person {row['person']}" if len(people) > 1 else "apparent personality", loc="left")
        axes.set(xlim=(0, 1), ylim=(len(TRAITS) - 0.5, -0.5), xticks=[])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    notes = ["neuroticism: high means calm"] if high_means_calm(people[0]) else []
    notes += ["whisker: 4 of 5 judgements lie within"] if "low_openness" in people[0] else []
    notes += ["%: of the training clips that are judged lower"] if "percentile_openness" in people[0] else []
    figure.supxlabel("\n".join(notes), x=0.02, ha="left", fontsize=9)
    parts = [image, _picture_of(figure)]
    height = max(len(part) for part in parts)
    return np.hstack([cv2.copyMakeBorder(part, 0, height - len(part), 0, 0, cv2.BORDER_CONSTANT, value=WHITE)
                      for part in parts])


def draw_heat_maps(network: PersonalityNetwork, scores: FileScores) -> np.ndarray:
    """Return overlay()'s picture of the chip of a file's scores; of several people it names the chip's."""
    face, star = scores.faces[len(scores.faces) // 2], "*" if high_means_calm(scores.rows[0]) else ""
    labels = [f"person {face['person']}, one face" if len(scores.people) > 1 else "one face",
              *(f"{trait}{star if trait == 'neuroticism' else ''} {face[trait]:.2f}" for trait in TRAITS)]
    maps = explain_chips(network, scores.chip[None].to(network.mean.device))[0]
    return overlay(scores.chip.numpy(), maps, labels, star and "* high means calm")


def overlay(chip: np.ndarray, maps: np.ndarray, labels: list[str], note: str = "") -> np.ndarray:
    """Return a picture: the chip and its maps over it, labels below all of them, a note, and a legend of the colours.

    chip: uint8 RGB 3 x H x W. maps: float 5 x H x W in [0, 1].
    """
    import matplotlib

    chip, width = chip.transpose(1, 2, 0), len(labels)
    grey = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)[:, :, None]  # so that every colour is the map's
    colours = matplotlib.colormaps["inferno"]
    panels = [(0.45 * grey + 0.55 * colours(heat, bytes=True)[:, :, :3]).astype(np.uint8) for heat in maps]
    strip = np.concatenate([chip, *panels], axis=1)
    figure = _figure(width * FACE_SIZE, CAPTIONS_HEIGHT, len(chip) / FACE_SIZE)
    for number, label in enumerate(labels):
        figure.text((number + 0.03) / width, 0.65, label)
    figure.text(0.03 / width, 0.2, note)
    figure.text(1.03 / width, 0.2,
                "colour: how much more a place raises this score than all scores on average, from none")
    bar = figure.add_axes([4.03 / width, 0.2, 0.5 / width, 0.2])
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto")
    bar.set_axis_off()
    figure.text(4.6 / width, 0.2, "to the most in this map")
    return np.concatenate([strip, _picture_of(figure)])


def plot_course(scores: FileScores) -> np.ndarray:
    """Return a plot of the scores of each frame, or of each piece, over the time of a clip: one panel per person.

    Of more than MOST_POINTS faces of a person, each point is the mean over neighbouring ones.
    """
    numbers = [row["person"] for row in scores.people]
    calm = " (high: calm)" if high_means_calm(scores.people[0]) else ""
    figure = _figure(900, 80 + 240 * len(numbers), layout="constrained")
    panels = figure.subplots(len(numbers), sharex=True, squeeze=False)[:, 0]
    pieces = [{**row, "seconds": (row["start"] + row["end"]) / 2} for row in scores.rows if "piece" in row]
    moment = "frame" if not pieces and any(np.isnan(face["seconds"]) for face in scores.faces) else "seconds"
    for panel, person in zip(panels, numbers):
        rows = pandas.DataFrame([row for row in pieces or scores.faces if row["person"] == person])
        shown = min(len(rows), MOST_POINTS)
        points = rows[[moment, *TRAITS]].groupby(np.arange(len(rows)) * shown // len(rows)).mean()
        for trait in TRAITS:
            panel.plot(points[moment], points[trait], marker="o", markersize=3, linewidth=1.2,
                       color=PLOT_COLOURS[trait], label=f"{trait}{calm if trait == 'neuroticism' else ''}")
        words = [f"person {person}"] if len(numbers) > 1 else []
        if shown < len(rows):
            words.append(f"each point: the mean of about {len(rows) / shown:.1f} {'pieces' if pieces else 'faces'}")
        elif pieces:
            words.append(f"each point: a piece of {rows['end'][0] - rows['start'][0]:.0f} s")
        panel.set(ylim=(0, 1), ylabel="score", title=", ".join(words) or None)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel(moment)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(TRAITS), frameon=False)
    return _picture_of(figure)
