"""Apparent personality from faces: the code that the scripts share.

    import first_impressions
    table = first_impressions.predict("clips/", model="pretrained")     # pandas.DataFrame, one row per file or person
"""


def predict(paths, model="pretrained", **options):
    """Return the scores of clips, pictures and folders as a pandas.DataFrame; see prediction.scoring.predict."""
    from first_impressions.prediction import scoring  # here: worker processes import the package, not PyTorch

    return scoring.predict(paths, model, **options)
